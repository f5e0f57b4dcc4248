//! The keys that bound a session, their layers, and what is in force once the layers lie over each other.

use std::time::Duration;

use super::defaults;

/// `[session]` and its overrides: each key as far as it was written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionKeys {
    /// No byte in either direction for this long ends the session.
    pub idle_timeout: Option<Bound>,
    /// After one side's FIN was passed on: no byte for this long ends the session.
    pub half_close_timeout: Option<Bound>,
    /// Longest life of a session.
    pub max_age: Option<Bound>,
    /// TCP_KEEPIDLE on both legs, whole seconds, 1 to 32767; `Off` switches keepalive off.
    pub keepalive_idle: Option<Bound>,
    /// TCP_KEEPINTVL on both legs, whole seconds, 1 to 32767.
    pub keepalive_interval: Option<Duration>,
    /// TCP_KEEPCNT on both legs, 1 to 127.
    pub keepalive_probes: Option<u32>,
    /// TCP_USER_TIMEOUT on both legs, whole milliseconds. It also ends a living reader whose window stays zero this long.
    pub user_timeout: Option<Bound>,
}

/// A bound that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `"off"`.
    Off,
    /// A duration above zero.
    After(Duration),
}

impl SessionKeys {
    /// With the default of each key that was not written.
    #[must_use]
    pub(super) fn or_default(&self) -> Self {
        let or = |key: Option<Bound>, default| key.or(Some(Bound::After(default)));
        let (interval, probes) = (self.keepalive_interval, self.keepalive_probes);
        Self {
            idle_timeout: or(self.idle_timeout, defaults::IDLE_TIMEOUT),
            half_close_timeout: or(self.half_close_timeout, defaults::HALF_CLOSE_TIMEOUT),
            max_age: self.max_age.or(Some(Bound::Off)),
            keepalive_idle: or(self.keepalive_idle, defaults::KEEPALIVE_IDLE),
            keepalive_interval: interval.or(Some(defaults::KEEPALIVE_INTERVAL)),
            keepalive_probes: probes.or(Some(defaults::KEEPALIVE_PROBES)),
            user_timeout: or(self.user_timeout, defaults::USER_TIMEOUT),
        }
    }
}

/// The limits one session runs under: `[session]` with the listener's and then the upstream's keys laid over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// See [`SessionKeys::idle_timeout`]. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// See [`SessionKeys::half_close_timeout`]. Default 60 s.
    pub half_close_timeout: Option<Duration>,
    /// See [`SessionKeys::max_age`]. Default off.
    pub max_age: Option<Duration>,
    /// `None` where keepalive is off. Default 60 s, 15 s, 4.
    pub keepalive: Option<Keepalive>,
    /// See [`SessionKeys::user_timeout`]. Default 5 min.
    pub user_timeout: Option<Duration>,
}

/// TCP keepalive of one leg (tcp(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe, whole seconds.
    pub idle: Duration,
    /// Between probes, whole seconds.
    pub interval: Duration,
    /// Unanswered probes before the connection counts as dead.
    pub probes: u32,
}

/// What is written in `[session]` and its overrides, the most specific first.
type Layers<'a> = [&'a SessionKeys; 3];

impl SessionLimits {
    /// Each key from the first layer that has it, else its default.
    pub(super) fn from_layers(layers: Layers<'_>) -> Self {
        let bound = |key: fn(&SessionKeys) -> Option<Bound>, default: Option<Duration>| match first(
            layers, key,
        ) {
            Some(Bound::After(time)) => Some(time),
            Some(Bound::Off) => None,
            None => default,
        };
        let interval =
            first(layers, |keys| keys.keepalive_interval).unwrap_or(defaults::KEEPALIVE_INTERVAL);
        let probes =
            first(layers, |keys| keys.keepalive_probes).unwrap_or(defaults::KEEPALIVE_PROBES);
        Self {
            idle_timeout: bound(|keys| keys.idle_timeout, Some(defaults::IDLE_TIMEOUT)),
            half_close_timeout: bound(
                |keys| keys.half_close_timeout,
                Some(defaults::HALF_CLOSE_TIMEOUT),
            ),
            max_age: bound(|keys| keys.max_age, None),
            keepalive: bound(|keys| keys.keepalive_idle, Some(defaults::KEEPALIVE_IDLE)).map(
                |idle| Keepalive {
                    idle,
                    interval,
                    probes,
                },
            ),
            user_timeout: bound(|keys| keys.user_timeout, Some(defaults::USER_TIMEOUT)),
        }
    }
}

fn first<T>(layers: Layers<'_>, key: fn(&SessionKeys) -> Option<T>) -> Option<T> {
    layers.into_iter().find_map(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: SessionKeys = SessionKeys {
        idle_timeout: None,
        half_close_timeout: None,
        max_age: None,
        keepalive_idle: None,
        keepalive_interval: None,
        keepalive_probes: None,
        user_timeout: None,
    };

    fn idle(bound: Bound) -> SessionKeys {
        SessionKeys {
            idle_timeout: Some(bound),
            ..NOTHING
        }
    }

    #[test]
    fn nothing_written_means_the_defaults() {
        let limits = SessionLimits::from_layers([&NOTHING; 3]);
        assert_eq!(limits.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(limits.half_close_timeout, Some(Duration::from_secs(60)));
        assert_eq!(limits.max_age, None);
        assert_eq!(limits.user_timeout, Some(Duration::from_secs(300)));
        let keepalive = Keepalive {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            probes: 4,
        };
        assert_eq!(limits.keepalive, Some(keepalive));
    }

    #[test]
    fn the_most_specific_layer_wins_key_by_key() {
        let minute = idle(Bound::After(Duration::from_secs(60)));
        let off = idle(Bound::Off);
        assert_eq!(
            SessionLimits::from_layers([&NOTHING, &minute, &off]).idle_timeout,
            Some(Duration::from_secs(60))
        );
        assert_eq!(
            SessionLimits::from_layers([&off, &minute, &NOTHING]).idle_timeout,
            None,
            "off is an answer, not a gap"
        );
        assert_eq!(
            SessionLimits::from_layers([&off, &NOTHING, &NOTHING]).user_timeout,
            Some(Duration::from_secs(300))
        );
    }

    #[test]
    fn keepalive_is_off_as_a_whole() {
        let off = SessionKeys {
            keepalive_idle: Some(Bound::Off),
            keepalive_probes: Some(9),
            ..NOTHING
        };
        assert_eq!(
            SessionLimits::from_layers([&NOTHING, &NOTHING, &off]).keepalive,
            None
        );
    }
}
