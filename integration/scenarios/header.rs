//! P1 to P14: what a connection may begin with, and what becomes of it.

use libtest_mimic::Trial;

use super::world::{ENDPOINT, World, listener, privatelink_header};
use crate::{
    claim,
    harness::{agent::Agent, origin::Manner, stream::End},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim(
        "header_one_byte_at_a_time_is_taken",
        header_one_byte_at_a_time_is_taken,
    )]
}

fn header_one_byte_at_a_time_is_taken() {
    let world = World::new("bytewise", Manner::Echo);
    world.node.run(async {
        let header = privatelink_header(ENDPOINT);
        let bytes: Vec<&[u8]> = header.chunks(1).collect();
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent.preface(&bytes).await.unwrap();
        agent.exchange(10_000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
    world.wait_closed("completed", 1);
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), 10_000);
    assert_eq!(world.booked(ENDPOINT, "to_client"), 10_000);
    world.assert_at_rest();
}
