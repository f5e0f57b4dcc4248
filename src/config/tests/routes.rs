//! What routes mean, and what is said about those that cannot be meant.

use super::*;

/// A listener with these lines, and two upstreams, `logs` and `main`.
fn listener(lines: &str) -> String {
    format!(
        "[[listener]]\nname = \"ingest\"\nbind = \"0.0.0.0:8443\"\ntrusted_peers = [\"10.20.0.0/16\"]\n{lines}\n\
         [[upstream]]\nname = \"main\"\ntargets = [\"main.example:443\"]\n\
         [[upstream]]\nname = \"logs\"\ntargets = [\"logs.example:443\"]\n"
    )
}

fn routes(list: &str) -> String {
    listener(&format!("upstream = \"main\"\nroutes = [{list}]"))
}

#[test]
fn routes_are_read_in_their_order() {
    let config = valid(&listener(
        r#"
routes = [
  { endpoint = "vpce-0a*", network = "10.1.0.0/16", upstream = "logs" },
  { sni = "*.Logs.example", upstream = "logs" },
  { host = "Main.example.", upstream = "main" },
]
peek_size = "64KiB"
peek_timeout = "2s""#,
    ));
    let listener = &config.listeners[0];
    assert_eq!(listener.upstream, None, "what no route takes is refused");
    let route = |upstream| Route {
        endpoint: None,
        network: None,
        sni: None,
        host: None,
        upstream,
    };
    let first = Route {
        endpoint: Some("vpce-0a*".into()),
        network: Some("10.1.0.0/16".parse().expect("a network")),
        ..route(1)
    };
    let second = Route {
        sni: Some("*.logs.example".into()),
        ..route(1)
    };
    let third = Route {
        host: Some("main.example".into()),
        ..route(0)
    };
    assert_eq!(listener.routes, [first, second, third]);
    assert_eq!(listener.peek_size, 65536);
    assert_eq!(listener.peek_timeout, Duration::from_secs(2));
    let config = valid(&routes(r#"{ sni = "a.example", upstream = "logs" }"#));
    let listener = &config.listeners[0];
    assert_eq!(listener.upstream, Some(0));
    assert_eq!(
        (listener.peek_size, listener.peek_timeout),
        (32 * 1024, Duration::from_secs(5))
    );
}

#[test]
fn routes_may_have_headers_of_their_own() {
    let text = listener("[[listener.routes]]\nsni = \"a.example\"\nupstream = \"logs\"");
    assert_eq!(valid(&text).listeners[0].routes.len(), 1);
}

#[test]
fn a_listener_without_routes_needs_an_upstream() {
    for lines in ["", "routes = []"] {
        let (keys, said) = refused(&listener(lines));
        assert_eq!(keys, ["listener.upstream"], "{said}");
    }
}

#[test]
fn every_mistake_of_every_route_is_said() {
    let (keys, said) = refused(&routes(
        r#"
  { endpoint = "vpce_0a", upstream = "lgs" },
  { sni = "a.example" },
  { upstream = "logs" },
  { network = "10.1.0.7/16", host = "a.example:80", upstream = "logs" },
  { snii = "a.example", upstream = "logs" },
  "logs",
"#,
    ));
    assert_eq!(
        keys,
        [
            "listener.routes.endpoint",
            "listener.routes.upstream",
            "listener.routes.upstream",
            "listener.routes",
            "listener.routes.network",
            "listener.routes.host",
            "listener.routes",
            "listener.routes.snii",
            "listener.routes",
        ],
        "{said}"
    );
    for expected in [
        "did you mean \"logs\"?",
        "would take every connection",
        "write \"a.example\"",
        "did you mean sni?",
        "a single value where a table belongs",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn routes_are_a_list() {
    let (keys, said) = refused(&listener(
        "routes = { sni = \"a.example\", upstream = \"logs\" }",
    ));
    assert_eq!(keys, ["listener.routes"]);
    assert!(said.contains("[{ … }]"), "{said}");
}

#[test]
fn a_route_that_nothing_reaches_points_to_the_one_that_takes_it_all() {
    for (earlier, later) in [
        (r#"sni = "a.example""#, r#"sni = "A.example""#),
        (r#"sni = "*.example""#, r#"sni = "*.a.example""#),
        (
            r#"host = "*.example""#,
            r#"host = "a.example", network = "10.0.0.0/8""#,
        ),
        (r#"network = "10.0.0.0/8""#, r#"network = "10.1.0.0/16""#),
        (
            r#"endpoint = "vpce-*""#,
            r#"endpoint = "vpce-0a*", sni = "a.example""#,
        ),
        (r#"endpoint = "*""#, r#"network = "10.0.0.0/8""#),
    ] {
        let list =
            format!("{{ {earlier}, upstream = \"logs\" }}, {{ {later}, upstream = \"main\" }}");
        let (keys, said) = refused(&routes(&list));
        assert_eq!(keys, ["listener.routes"], "{said}");
        assert!(
            said.contains("no connection comes this far") && said.contains("taken here"),
            "{said}"
        );
        // The other way round, each has its own, unless they are the same.
        if !earlier.eq_ignore_ascii_case(later) {
            let list =
                format!("{{ {later}, upstream = \"main\" }}, {{ {earlier}, upstream = \"logs\" }}");
            assert_eq!(valid(&routes(&list)).listeners[0].routes.len(), 2);
        }
    }
}

#[test]
fn conditions_that_never_hold_together_are_refused() {
    let (keys, said) = refused(&routes(
        r#"{ sni = "a.example", host = "a.example", upstream = "logs" }"#,
    ));
    assert_eq!(keys, ["listener.routes"]);
    assert!(said.contains("no connection has both"), "{said}");
    let text = routes(r#"{ endpoint = "vpce-*", upstream = "logs" }"#).replace(
        "trusted_peers = [\"10.20.0.0/16\"]",
        "proxy_protocol = \"off\"",
    );
    let (keys, said) = refused(&text);
    assert_eq!(keys, ["listener.routes.endpoint"]);
    assert!(said.contains("PROXY v2"), "{said}");
}

#[test]
fn what_bounds_a_look_needs_a_route_that_looks() {
    let (keys, said) = refused(&listener(
        "upstream = \"main\"\npeek_size = \"8KiB\"\npeek_timeout = \"1s\"\n\
         routes = [{ network = \"10.0.0.0/8\", upstream = \"logs\" }]",
    ));
    assert_eq!(keys, ["listener.peek_size", "listener.peek_timeout"]);
    assert!(said.contains("add a route with sni or host"), "{said}");
    let (keys, said) = refused(&listener(
        "upstream = \"main\"\npeek_size = \"8KiB\"\nroutes = [{ sni = \"*\", upstream = \"logs\" }]",
    ));
    assert_eq!(
        keys,
        ["listener.routes.sni"],
        "one mistake is not two: {said}"
    );
    for size in ["1023B", "65KiB"] {
        let (keys, said) = refused(&listener(&format!(
            "peek_size = \"{size}\"\nroutes = [{{ host = \"a\", upstream = \"logs\" }}]"
        )));
        assert_eq!(keys, ["listener.peek_size"], "{said}");
    }
}
