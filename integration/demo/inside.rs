//! The story, step by step, in namespaces of our own.

use std::{env, fs, process::ExitCode, sync::Arc};

use crate::{
    Options, books, control_plane,
    harness::{
        enter,
        relay::{self, Signal},
    },
    live,
    outside::{self, Outside},
    pokes, say,
    world::{
        AGENT, CONSUMERS, CONTROL_PLANE, INTERFACE, Part, RESOLVER, ROUND_TRIP, SHIPPED, World,
    },
};

/// Runs the demo; success when the books agree.
pub(crate) fn run(options: Options) -> Result<ExitCode, String> {
    // Asked of the kernel before unshare(1) takes this process over, and once more after.
    outside::die_together()?;
    enter::enter()?;
    let mut outside = Outside::connect()?;
    let world = Arc::new(build()?);
    if options.keep {
        explain_pokes(&mut outside, &world)?;
        if let Some(door) = outside.door.take() {
            pokes::serve(door, Arc::clone(&world)).map_err(|error| error.to_string())?;
        }
    }
    let stop = outside.listen_for_the_end()?;
    for index in 0..CONSUMERS.len() {
        world.start(Part::Agents(index))?;
    }
    explain_traffic(&world, options);
    live::watch(&world, options, &stop)?;
    let right = settle(&world)?;
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn build() -> Result<World, String> {
    say("tollgate demo: an outpost VPC on this machine. All of it is in namespaces of its");
    say("own; nothing leaves the machine, and nothing stays behind.");
    say("");
    let world = World::new()?;
    say("1. Two consumers, each in a VPC and an account of its own. From there no route");
    say("   leads anywhere: there is an endpoint, and that is all. The addresses are the");
    say(&format!(
        "   same in both ({AGENT} to {INTERFACE}); only endpoint ids differ."
    ));
    for consumer in &CONSUMERS {
        say(&format!(
            "     {:<9} account {}  {}",
            consumer.name, consumer.account, consumer.endpoint
        ));
    }
    world.start(Part::ControlPlane)?;
    world.start(Part::Resolver)?;
    say("2. The main Region: the control plane takes HTTP on port 80 and TLS on 443.");
    say(&format!("   {CONTROL_PLANE} has two addresses;"));
    say(&format!(
        "   the name server is {RESOLVER}, in the main Region too."
    ));
    match &world.no_delay {
        None => say(&format!(
            "   A packet takes {} ms to get there from the outpost and back.",
            ROUND_TRIP.as_millis()
        )),
        Some(why) => say(&format!("   {why}")),
    }
    say("3. The outpost VPC, near the consumers: the relay, started with");
    say(&format!("     {}", shortened(&relay::binary())));
    say(&format!(
        "       run --config {}",
        world.relay.folder().join("tollgate.toml").display()
    ));
    explain_config(&world);
    world.start(Part::Nlb)?;
    world.wait_healthy()?;
    say("4. In front of it the load balancer (NLB) that the endpoints lead to. It tells");
    say("   the relay by a PROXY protocol v2 header, at the start of each connection,");
    say("   which endpoint that came through. Its health checks of the relay pass.");
    Ok(world)
}

/// From the folder where we are, if it is below.
fn shortened(path: &std::path::Path) -> String {
    let here = env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok());
    below.unwrap_or(path).display().to_string()
}

/// The file as the relay reads it, without what is only said to readers.
fn explain_config(world: &World) {
    let Ok(text) = fs::read_to_string(world.relay.folder().join("tollgate.toml")) else {
        return;
    };
    let matter = |text: &str, mark: &str| {
        let lines = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or(""));
        for line in lines.map(str::trim_end).filter(|line| !line.is_empty()) {
            say(&format!("     {mark} {line}"));
        }
    };
    say("   That is the file systemd/tollgate.toml as it is shipped; what matters in it:");
    matter(SHIPPED, " ");
    say("   and what this demo appends: its name server, a port for plain HTTP, and more");
    say("   for the books:");
    matter(text.strip_prefix(SHIPPED).unwrap_or(&text), "+");
}

fn explain_traffic(world: &World, options: Options) {
    let time = if options.keep {
        "until Ctrl-C".to_owned()
    } else {
        format!("for {} s", options.seconds.as_secs())
    };
    let logs = if world.log_files.is_empty() {
        "the relay's log".to_owned()
    } else {
        world.log_files.join(", ")
    };
    say(&format!(
        "5. Agents push {time}: this machine's metrics from /proc,"
    ));
    say(&format!("   over HTTP, and log lines ({logs}),"));
    say("   over TLS, which ends at the control plane: the relay passes it through as it");
    say("   is. What the relay counts, as its /metrics on 127.0.0.1:9900 show it");
    say(if options.keep {
        "   (read them yourself as said above):"
    } else {
        "   (to read them yourself: make demo KEEP=1):"
    });
    say("");
}

/// Ends the traffic in order and compares.
fn settle(world: &World) -> Result<bool, String> {
    say("");
    let in_order = world.stop_agents();
    if !in_order {
        say("   An agent could not close in order in time.");
    }
    let over = control_plane::wait_over(&world.control_plane_books) && live::wait_idle(world)?;
    if !over {
        say("   WRONG: connections are still open.");
    }
    let metrics = world.relay.metrics();
    say("6. The agents have closed. The books, in bytes, next to what the agents and the");
    say("   control plane counted at their own sockets:");
    let right = books::settle(world, &metrics);
    say("");
    world.relay.signal(Signal::INT);
    let code = world.relay.wait_exit();
    if code != 0 {
        say(&format!("   WRONG: the relay ended with {code}."));
    }
    let right = right && over && code == 0 && explain_what_lasts(world);
    say("");
    say(if right {
        "   The books are right. The relay was told to end, and ended with 0."
    } else {
        "   THIS IS NOT AS IT MUST BE; see above."
    });
    Ok(right)
}

/// What is left when the relay is gone; true when it can be read and holds.
fn explain_what_lasts(world: &World) -> bool {
    say("7. The relay was told to end. What lasts is its ledger, and a record of each");
    say("   session in the audit trail, each tied to the one before:");
    let mut right = true;
    for command in [
        ["usage", "--config", "@CONFIG@"].as_slice(),
        &["audit", "verify", "--config", "@CONFIG@"],
    ] {
        let said = world.relay.tollgate(command);
        say("");
        say(&format!(
            "     $ tollgate {}",
            command[..command.len() - 2].join(" ")
        ));
        for line in said.out.lines().chain(said.err.lines()) {
            say(&format!("     {line}"));
        }
        right &= said.code == 0;
    }
    right
}

/// What a user can do from another terminal, while the demo is kept.
fn explain_pokes(outside: &mut Outside, world: &World) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot ask outside: {error}");
    let id = outside.id_of(world.relay.id()).map_err(failed)?;
    say("");
    say("   To poke at it, from another terminal:");
    if let Some(door) = &outside.door {
        let address = door.local_addr().map_err(failed)?;
        say(&format!(
            "     curl http://{address}/metrics    also /status /healthz /readyz"
        ));
        for part in Part::ALL {
            say(&format!(
                "     curl -X POST http://{address}/kill/{}",
                part.name()
            ));
        }
        say("   and /start/… in place of /kill/… to have it back.");
    }
    let user = if outside::is_root() {
        ""
    } else {
        "-U --preserve-credentials "
    };
    say("   Where the relay is, its admin port and its network as it sees them:");
    say(&format!(
        "     nsenter -t {id} {user}-n curl http://127.0.0.1:9900/metrics"
    ));
    say(&format!("     nsenter -t {id} {user}-n ss -tn"));
    say(&format!(
        "     kill -TERM {id}    the relay itself: watch it drain"
    ));
    say(&format!(
        "     less /proc/{id}/root{}",
        world.relay.folder().join("tollgate.toml").display()
    ));
    say("");
    Ok(())
}
