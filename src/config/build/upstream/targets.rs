//! `targets` of an upstream: each a text, or a table that says more.

use std::ops::Range;

use toml::Spanned;

use crate::config::build::Builder;
use crate::config::build::places::{self, Placed};
use crate::config::file::{Key, Raw};
use crate::config::{Target, addresses, values};

const KEY: &str = "upstream.targets";

impl Builder {
    /// Those that are right; `None` where there is none at all.
    pub(super) fn targets(
        &mut self,
        key: &Key,
        place: &Range<usize>,
    ) -> Option<Vec<Spanned<Target>>> {
        let example = "targets = [\"cp.us-east-1.example.internal:443\"]";
        if self.found.lacking(KEY, key, place, example) {
            return None;
        }
        let items = self.found.items(KEY, key)?;
        let targets: Vec<_> = items.iter().filter_map(|item| self.target(item)).collect();
        let placed: Vec<_> = targets
            .iter()
            .map(|target| Placed {
                key: KEY,
                value: target.get_ref().clone(),
                span: Some(target.span()),
            })
            .collect();
        self.found
            .mistakes
            .extend(places::duplicate_targets(&placed));
        self.targets.extend(placed);
        Some(targets)
    }

    fn target(&mut self, item: &Spanned<Raw>) -> Option<Spanned<Target>> {
        if !matches!(item.get_ref(), Raw::Table(_)) {
            let item = Some(item.clone());
            let target = self.found.value(KEY, &item, addresses::target)?;
            return Some(Spanned::new(item?.span(), target));
        }
        let example = "{ target = \"HOST:PORT\", priority = 1 }";
        let known = ["target", "priority", "weight"];
        let [target, priority, weight] = self.found.open(KEY, item, example, known)?;
        let key = "upstream.targets.target";
        let found = self.found.required(
            key,
            &target,
            &item.span(),
            "target = \"HOST:PORT\"",
            addresses::target,
        );
        let key = "upstream.targets.priority";
        let priority = self
            .found
            .value(key, &priority, |raw| values::number(raw, 0..=15));
        let key = "upstream.targets.weight";
        let weight = self
            .found
            .value(key, &weight, |raw| values::number(raw, 1..=1000));
        let plain = found?;
        let target = Target {
            priority: priority.unwrap_or(plain.priority),
            weight: weight.unwrap_or(plain.weight),
            ..plain
        };
        Some(Spanned::new(item.span(), target))
    }
}
