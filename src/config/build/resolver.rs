//! `[resolver]`.

use std::num::NonZeroU32;

use super::Builder;
use super::findings::strip;
use crate::config::file::{Key, ResolverTable};
use crate::config::{Family, Resolver, addresses, defaults, values};

/// Most servers and most domains: each that does not answer, or does not have the name, costs its share of the time there is.
const MOST: usize = 16;

impl Builder {
    pub(super) fn resolver(&mut self, table: &ResolverTable) -> Resolver {
        let families = [
            ("any", Family::Any),
            ("ipv4", Family::Ipv4),
            ("ipv6", Family::Ipv6),
            ("ipv4_first", Family::Ipv4First),
            ("ipv6_first", Family::Ipv6First),
        ];
        let servers = self
            .found
            .list("resolver.servers", &table.servers, addresses::name_server);
        let search = self
            .found
            .list("resolver.search", &table.search, addresses::search_domain);
        self.at_most(
            "resolver.servers",
            &table.servers,
            servers.as_ref().map(Vec::len),
        );
        self.at_most(
            "resolver.search",
            &table.search,
            search.as_ref().map(Vec::len),
        );
        if table.servers.is_none() {
            self.found.useless(
                "resolver.search",
                &table.search,
                "without servers, both come from /etc/resolv.conf",
                "add servers = [\"10.20.0.2\"], or write a line \"search …\" in /etc/resolv.conf",
            );
        }
        let queries = self
            .found
            .value(
                "resolver.queries_per_second",
                &table.queries_per_second,
                |raw| values::number(raw, 1..=1000),
            )
            .and_then(NonZeroU32::new);
        Resolver {
            servers: servers.map(strip).unwrap_or_default(),
            search: search.map(strip).unwrap_or_default(),
            family: self.found.word("resolver.family", &table.family, &families),
            queries_per_second: queries.unwrap_or(defaults::QUERIES_PER_SECOND),
        }
    }

    fn at_most(&mut self, key: &str, written: &Key, length: Option<usize>) {
        if let (Some(written), Some(length)) = (written, length)
            && length > MOST
        {
            let problem = format!("{length} are more than would ever be asked");
            let help = format!("keep at most {MOST}");
            self.found
                .mistake(key, &problem, &help, Some(written.span()));
        }
    }
}
