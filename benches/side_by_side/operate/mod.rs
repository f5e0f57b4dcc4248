//! What operating the relay costs those who are connected: a reload ([`reload`]). In rounds of its own, and in a report of its own.

use std::fmt::{Result, Write};

use serde_json::json;

use crate::{processor::Cores, report::machine};

pub(crate) mod reload;

/// All parts, as far as they were made.
#[derive(Debug)]
pub(crate) struct Report {
    /// At every host.
    pub(crate) congestion: String,
    /// Who ran where.
    pub(crate) cores: Cores,
    pub(crate) reload: Option<reload::Reloads>,
}

impl Report {
    /// As it is shown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> Result {
        let (kernel, processor) = machine();
        let Cores { load, relay } = self.cores;
        writeln!(text, "# Operation\n\n- {kernel}; {processor}")?;
        writeln!(
            text,
            "- congestion control at every host: {}; client, relay and origin in network namespaces of their own, over veth; relay with one worker and all its \
             other threads on core {relay}, client and origin on core {load}\n",
            self.congestion
        )?;
        if let Some(reload) = &self.reload {
            reload.write(text)?;
        }
        Ok(())
    }

    /// Each sample.
    pub(crate) fn json(&self) -> String {
        let (kernel, processor) = machine();
        let value = json!({
            "kernel": kernel,
            "processor": processor,
            "congestion_control": self.congestion,
            "reload": self.reload.as_ref().map(reload::Reloads::json),
        });
        format!("{value:#}\n")
    }
}
