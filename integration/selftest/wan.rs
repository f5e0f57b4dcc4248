//! Long-distance links do to packets what they are told.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::{Host, Lab},
        origin::{Manner, Origin},
        stream::End,
        wan::{Shape, Wan},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "wan_link_delays_and_loses_as_told",
            wan_link_delays_and_loses_as_told,
        ),
        claim(
            "wan_link_reorders_and_duplicates_and_tcp_lives",
            wan_link_reorders_and_duplicates_and_tcp_lives,
        ),
        claim("wan_link_keeps_its_rate", wan_link_keeps_its_rate),
        claim(
            "wan_link_can_be_cut_and_restored",
            wan_link_can_be_cut_and_restored,
        ),
        claim("wan_link_carries_bulk", wan_link_carries_bulk),
    ]
}

fn regions(lab: &Lab, shape: Shape) -> (Host, Host, Wan) {
    let (near, far) = (lab.host("near"), lab.host("far"));
    let wan = lab.wan((&near, "10.8.0.1/30"), (&far, "10.8.0.2/30"), shape);
    (near, far, wan)
}

/// Sends so many bytes there and back, and returns how long that took.
fn exchange(near: &Host, far: &Host, bytes: u64) -> Duration {
    let origin = Origin::start(far, "10.8.0.2:0", Manner::Echo);
    let to = origin.address();
    let start = Instant::now();
    let end = near.run(async move {
        let mut agent = Agent::connect(to).await?;
        agent.exchange(bytes).await?;
        agent.finish()?;
        agent.expect_to_end(0).await
    });
    let took = start.elapsed();
    assert_eq!(end.expect("it gets through"), End::Fin);
    assert_eq!(origin.wait_over(1).received, bytes);
    took
}

fn wan_link_delays_and_loses_as_told() {
    let lab = Lab::new("wan-delay");
    let (near, far, wan) = regions(&lab, Shape::delay(Duration::from_millis(30)));
    // Handshake, one byte there and back, FIN there and back: three round trips.
    let took = exchange(&near, &far, 1);
    assert!(took >= Duration::from_millis(180), "{took:?}");
    assert_eq!((wan.carried(0).lost, wan.carried(1).lost), (0, 0));

    wan.shape(|shape| {
        shape.delay = Duration::ZERO;
        shape.loss = 0.1;
        shape.jitter = Duration::from_millis(1);
    });
    exchange(&near, &far, 2 << 20);
    let there = wan.carried(0);
    let share = there.lost as f64 / (there.lost + there.delivered) as f64;
    // Some 300 packets or more: four standard deviations are 7 %.
    assert!((0.03..0.17).contains(&share), "{there:?}");
}

fn wan_link_reorders_and_duplicates_and_tcp_lives() {
    let lab = Lab::new("wan-reorder");
    let shape = Shape {
        delay: Duration::from_millis(2),
        reorder: 0.05,
        duplicate: 0.05,
        mtu: 1500,
        ..Shape::default()
    };
    let (near, far, wan) = regions(&lab, shape);
    exchange(&near, &far, 4 << 20);
    let there = wan.carried(0);
    assert!(there.reordered > 0 && there.duplicated > 0, "{there:?}");
    assert!(there.delivered > (4 << 20) / 1448, "{there:?}");
}

fn wan_link_keeps_its_rate() {
    let lab = Lab::new("wan-rate");
    let shape = Shape {
        rate: Some(80_000_000),
        ..Shape::default()
    };
    let (near, far, _wan) = regions(&lab, shape);
    // 5 MB at 10 MB/s, there and, at the same time, back.
    let took = exchange(&near, &far, 5_000_000);
    assert!(took >= Duration::from_millis(450), "{took:?}");
}

fn wan_link_can_be_cut_and_restored() {
    let lab = Lab::new("wan-cut");
    let (near, far, wan) = regions(&lab, Shape::delay(Duration::from_millis(1)));
    exchange(&near, &far, 1000);
    wan.cut();
    let to = "10.8.0.2:9".parse().expect("an address");
    let connect =
        async move { tokio::time::timeout(Duration::from_millis(200), Agent::connect(to)).await };
    assert!(near.run(connect).is_err(), "not even refused");
    assert!(wan.carried(0).cut > 0);
    wan.restore();
    exchange(&near, &far, 1000);
}

fn wan_link_carries_bulk() {
    const BYTES: u64 = 64 << 20;
    let lab = Lab::new("wan-bulk");
    let (near, far, wan) = regions(&lab, Shape::default());
    let origin = Origin::start(&far, "10.8.0.2:0", Manner::CheckedSink);
    let to = origin.address();
    near.run(async move {
        let mut agent = Agent::connect(to).await?;
        agent.send(BYTES).await?;
        agent.finish()?;
        agent.expect_to_end(0).await
    })
    .expect("it gets through");
    let books = origin.wait_over(1);
    assert_eq!((books.received, books.mismatches), (BYTES, vec![]));
    assert_eq!(wan.carried(0).lost, 0);
}
