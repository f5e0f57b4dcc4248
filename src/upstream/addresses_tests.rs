use super::*;

const S: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_secs(60);

const BOTH: [Kind; 2] = [Kind::V4, Kind::V6];

fn ips(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
}

fn v4(last: &[u8], ttl: Duration) -> Answer {
    Answer::Addresses(ips(last), ttl)
}

fn v6(ttl: Duration) -> Answer {
    Answer::Addresses(six(), ttl)
}

fn six() -> Vec<IpAddr> {
    vec!["fd00::1".parse().unwrap()]
}

/// A name and a time that goes on only when told to. Chance is 0: a good answer is asked for again at 80 % of its TTL.
struct Name {
    resolution: Resolution,
    now: Instant,
}

impl Name {
    fn new(stale_for: Option<Duration>, kinds: &[Kind]) -> Self {
        let now = Instant::now();
        let bounds = Bounds {
            min_ttl: S,
            max_ttl: 300 * S,
            stale_for,
        };
        Self {
            resolution: Resolution::new(bounds, kinds, now),
            now,
        }
    }

    fn answered(&mut self, kind: Kind, answer: Answer) -> Booked {
        self.resolution.answered(self.now, kind, answer, 0.0)
    }

    fn current(&self) -> Vec<IpAddr> {
        self.resolution.current(self.now)
    }

    fn standing(&self) -> Standing {
        self.resolution.standing(self.now)
    }

    /// In how long the next question of any family is due.
    fn next(&self) -> Duration {
        let next = self.resolution.next().unwrap();
        next.saturating_duration_since(self.now)
    }

    fn look(&self, kind: Kind) -> Duration {
        let look = self.resolution.look(kind, self.now).unwrap();
        look.saturating_duration_since(self.now)
    }
}

#[test]
fn an_answer_is_asked_for_again_before_it_ends() {
    let mut name = Name::new(None, &[Kind::V4]);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert_eq!(name.next(), 48 * S);
    assert_eq!(name.resolution.ttl_ends(), Some(name.now + MINUTE));
    assert!(!name.resolution.ask(Kind::V4, name.now + 47 * S));
    assert!(name.resolution.ask(Kind::V4, name.now + 48 * S));
    assert!(
        !name.resolution.ask(Kind::V6, name.now + 48 * S),
        "unwanted"
    );
}

#[test]
fn the_last_good_answer_outlives_failures_and_a_name_that_is_gone() {
    for bad in [Answer::Failed, Answer::None(Some(MINUTE))] {
        let mut name = Name::new(None, &[Kind::V4]);
        assert_eq!(name.standing(), Standing::Unknown);
        name.answered(Kind::V4, v4(&[1, 2], S));
        assert_eq!(name.standing(), Standing::Fresh);
        assert!(name.answered(Kind::V4, bad).failure);
        assert_eq!(name.standing(), Standing::Stale);
        name.now += 100_000 * S;
        assert_eq!(name.current(), ips(&[1, 2]));
        assert_eq!(name.resolution.ttl_ends(), None);
        assert!(!name.answered(Kind::V4, v4(&[1, 2], S)).failure);
        assert_eq!(name.standing(), Standing::Fresh);
    }
}

#[test]
fn stale_for_ends_it_and_only_while_failing() {
    let mut name = Name::new(Some(10 * S), &[Kind::V4]);
    let began = name.now;
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert_eq!(name.resolution.current(began + 59 * S), ips(&[1]));
    for second in [5, 6, 7] {
        name.now = began + second * S;
        name.answered(Kind::V4, Answer::Failed);
    }
    assert_eq!(name.look(Kind::V4), 3 * S, "before the next question");
    name.now = began + 9 * S;
    assert_eq!(name.standing(), Standing::Stale);
    name.now = began + 10 * S;
    assert_eq!(name.standing(), Standing::Nothing);
    assert_eq!(name.look(Kind::V4), S);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert_eq!(name.standing(), Standing::Fresh);
}

/// Ten minutes without an answer: what was good at their beginning serves to their end, and whoever comes back is asked within half
/// a minute.
#[test]
fn a_resolver_that_is_dead_for_ten_minutes_costs_no_address() {
    let mut name = Name::new(None, &[Kind::V4]);
    name.answered(Kind::V4, v4(&[1, 2], 5 * S));
    let (back, mut questions) = (name.now + 600 * S, 0);
    loop {
        name.now += name.next();
        assert!(name.resolution.ask(Kind::V4, name.now));
        if name.now >= back {
            break;
        }
        name.now += 7 * S; // the tries of one look-up
        assert!(name.answered(Kind::V4, Answer::Failed).failure);
        assert_eq!(name.current(), ips(&[1, 2]));
        assert_eq!(name.standing(), Standing::Stale);
        questions += 1;
    }
    assert!((15..=25).contains(&questions), "{questions} questions");
    assert!(name.now <= back + 30 * S);
    name.answered(Kind::V4, v4(&[3], 5 * S));
    assert_eq!(
        (name.current(), name.standing()),
        (ips(&[3]), Standing::Fresh)
    );
    name.answered(Kind::V4, Answer::Failed);
    assert_eq!(name.next(), S, "it begins anew");
}

#[test]
fn one_family_failing_leaves_both_in_use_and_the_name_fresh_in_part() {
    let mut name = Name::new(None, &BOTH);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert_eq!(name.current(), ips(&[1]), "without waiting for the other");
    name.answered(Kind::V6, v6(MINUTE));
    assert_eq!(name.standing(), Standing::Fresh);
    assert!(name.answered(Kind::V4, Answer::Failed).failure);
    assert_eq!(name.current(), [ips(&[1]), six()].concat());
    assert_eq!(name.standing(), Standing::Partly);
    assert!(name.resolution.is_amiss(Kind::V4) && !name.resolution.is_amiss(Kind::V6));
    name.answered(Kind::V6, Answer::Failed);
    assert_eq!(name.standing(), Standing::Stale);
}

#[test]
fn a_family_that_never_answers_is_a_note_and_no_more() {
    let mut name = Name::new(Some(S), &BOTH);
    name.answered(Kind::V6, Answer::Failed);
    assert_eq!(name.standing(), Standing::Unknown, "the other may be good");
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert_eq!(name.standing(), Standing::Partly);
    assert_eq!(name.current(), ips(&[1]));
}

#[test]
fn a_family_that_goes_is_in_use_until_the_other_was_asked() {
    let mut name = Name::new(None, &BOTH);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    name.answered(Kind::V6, v6(MINUTE));
    name.now += 30 * S;
    let booked = name.answered(Kind::V4, Answer::None(None));
    assert!(!booked.failure && booked.ask_other);
    assert_eq!(name.look(Kind::V6), Duration::ZERO, "is it the name?");
    assert_eq!(name.current(), [ips(&[1]), six()].concat());
    name.answered(Kind::V6, v6(MINUTE));
    assert_eq!((name.current(), name.standing()), (six(), Standing::Fresh));
    assert!(name.answered(Kind::V6, Answer::None(None)).ask_other);
    assert!(name.answered(Kind::V4, Answer::None(None)).failure);
    assert_eq!(
        (name.current(), name.standing()),
        (six(), Standing::Stale),
        "what went before stays away"
    );
}

#[test]
fn a_name_that_goes_as_a_whole_keeps_both_families() {
    let mut name = Name::new(None, &BOTH);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    name.answered(Kind::V6, v6(MINUTE));
    assert!(name.answered(Kind::V4, Answer::None(None)).ask_other);
    for _ in 0..3 {
        let booked = name.answered(Kind::V6, Answer::None(None));
        assert!(booked.failure && !booked.ask_other, "one was just asked");
        assert_eq!(name.current(), [ips(&[1]), six()].concat());
        assert_eq!(name.standing(), Standing::Stale);
        assert!(name.resolution.is_amiss(Kind::V4));
        let booked = name.answered(Kind::V4, Answer::None(None));
        assert!(booked.failure && !booked.ask_other);
    }
}

#[test]
fn a_name_that_goes_is_stale_once_the_family_that_it_never_had_was_asked() {
    let mut name = Name::new(None, &BOTH);
    name.answered(Kind::V6, Answer::None(Some(300 * S)));
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert!(name.answered(Kind::V4, Answer::None(None)).ask_other);
    assert_eq!(name.standing(), Standing::Fresh);
    assert!(name.answered(Kind::V6, Answer::None(None)).failure);
    assert_eq!(name.standing(), Standing::Stale);
    assert_eq!(name.current(), ips(&[1]));
}

#[test]
fn a_name_that_goes_while_the_other_family_cannot_be_asked_is_stale() {
    let mut name = Name::new(None, &BOTH);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    name.answered(Kind::V6, v6(MINUTE));
    name.answered(Kind::V4, Answer::None(None));
    assert!(name.answered(Kind::V6, Answer::Failed).failure);
    assert_eq!(name.standing(), Standing::Stale);
    assert_eq!(name.current(), [ips(&[1]), six()].concat());
}

#[test]
fn in_part_is_said_when_it_is_more_than_a_moment() {
    let mut name = Name::new(None, &BOTH);
    let mut answered = |kind, answer| {
        name.now += S;
        name.answered(kind, answer);
        name.resolution.fails_in_part()
    };
    assert!(!answered(Kind::V4, v4(&[1], MINUTE)));
    assert!(!answered(Kind::V6, Answer::Failed));
    assert!(answered(Kind::V6, Answer::Failed));
    assert!(!answered(Kind::V4, Answer::Failed), "it fails as a whole");
    assert!(!answered(Kind::V4, v4(&[1], MINUTE)), "it comes back");
    assert!(answered(Kind::V6, Answer::Failed), "but not this part");
    assert!(!answered(Kind::V6, v6(MINUTE)));
}

#[test]
fn a_name_that_moves_to_the_other_family_is_asked_for_there_at_once() {
    let mut name = Name::new(None, &BOTH);
    name.answered(Kind::V4, v4(&[1], 5 * S));
    name.answered(Kind::V6, Answer::None(Some(300 * S)));
    name.now += 10 * S;
    assert!(name.look(Kind::V6) > 200 * S, "there was no reason to");
    let booked = name.answered(Kind::V4, Answer::None(Some(300 * S)));
    assert!(booked.ask_other && !booked.failure);
    assert_eq!(name.standing(), Standing::Fresh, "nothing has failed yet");
    assert!(!name.resolution.is_amiss(Kind::V4) && !name.resolution.is_amiss(Kind::V6));
    assert_eq!(name.look(Kind::V6), Duration::ZERO);
    assert_eq!(name.current(), ips(&[1]), "until then");
    assert!(!name.answered(Kind::V6, v6(MINUTE)).ask_other);
    assert_eq!((name.current(), name.standing()), (six(), Standing::Fresh));
    name.answered(Kind::V6, Answer::Failed);
    assert_eq!(name.current(), six(), "what went stays away");
}

#[test]
fn a_name_without_aaaa_is_fresh_and_not_asked_for_it_more_often_than_for_a() {
    let mut name = Name::new(None, &BOTH);
    assert!(!name.answered(Kind::V6, Answer::None(None)).failure);
    assert_eq!(name.standing(), Standing::Unknown);
    assert_eq!(name.look(Kind::V6), S);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert_eq!(name.standing(), Standing::Fresh);
    assert_eq!(
        name.look(Kind::V6),
        48 * S,
        "known to have the other, it rests"
    );
    for (good_for, waited) in [(None, 48), (Some(10 * S), 8), (Some(900 * S), 240)] {
        assert!(!name.answered(Kind::V6, Answer::None(good_for)).failure);
        assert_eq!(name.look(Kind::V6), waited * S);
    }
    assert!(!name.resolution.is_amiss(Kind::V6));
}

#[test]
fn a_name_that_does_not_exist_is_nothing_once_both_families_say_so() {
    let mut name = Name::new(None, &BOTH);
    assert!(!name.answered(Kind::V4, Answer::None(None)).failure);
    assert_eq!(name.standing(), Standing::Unknown);
    assert!(name.answered(Kind::V6, Answer::None(None)).failure);
    assert_eq!(name.standing(), Standing::Nothing);
    assert!(name.answered(Kind::V4, Answer::None(None)).failure);
}

#[test]
fn a_new_order_is_no_change() {
    let mut name = Name::new(None, &[Kind::V4]);
    name.answered(Kind::V4, v4(&[1, 2, 3, 1], S));
    for order in [[2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        name.answered(Kind::V4, v4(&order, S));
        assert_eq!(name.current(), ips(&[1, 2, 3]));
    }
    name.answered(Kind::V4, v4(&[4, 3, 2], S));
    assert_eq!(
        name.current(),
        ips(&[2, 3, 4]),
        "what stays keeps its place"
    );
}

#[test]
fn a_connect_error_brings_the_next_question_forward_once_a_second() {
    let mut name = Name::new(None, &[Kind::V4]);
    assert!(name.resolution.ask(Kind::V4, name.now));
    name.answered(Kind::V4, v4(&[1], MINUTE));
    assert!(name.resolution.can_be_requested(Kind::V4, name.now));
    name.resolution.requested(name.now);
    assert_eq!(name.next(), S);
    let more = name.resolution.can_be_requested(Kind::V4, name.now);
    assert!(!more, "a thousand of them change nothing, and wake nobody");
    name.now += S;
    assert!(name.resolution.ask(Kind::V4, name.now));
    name.answered(Kind::V4, v4(&[1], MINUTE));
    name.now += 5 * S;
    name.resolution.requested(name.now);
    assert_eq!(name.next(), Duration::ZERO);
}

#[test]
fn a_new_resolver_is_asked_at_once() {
    let mut name = Name::new(None, &[Kind::V4]);
    name.answered(Kind::V4, v4(&[1], MINUTE));
    for _ in 0..4 {
        name.answered(Kind::V4, Answer::Failed);
    }
    assert_eq!(name.next(), 8 * S);
    name.resolution.asked_elsewhere(Kind::V4, name.now);
    assert_eq!(name.next(), Duration::ZERO);
    name.answered(Kind::V4, Answer::Failed);
    assert_eq!(name.next(), S);
}

#[test]
fn a_flood_of_addresses_is_bounded_and_does_not_churn() {
    let mut name = Name::new(None, &[Kind::V4]);
    let mut many: Vec<_> = (0..4000_u32)
        .map(|n| IpAddr::from((0x0A00_0000 + n).to_be_bytes()))
        .collect();
    name.answered(Kind::V4, Answer::Addresses(many.clone(), S));
    let first = name.current();
    assert_eq!(first, many[..MOST_ADDRESSES]);
    many.rotate_left(1234);
    name.answered(Kind::V4, Answer::Addresses(many.clone(), S));
    assert_eq!(name.current(), first, "whichever the answer begins with");
    many.retain(|address| *address != first[0]);
    name.answered(Kind::V4, Answer::Addresses(many.clone(), S));
    assert_eq!(name.current(), [&first[1..], &many[..1]].concat());
}

#[test]
fn an_address_that_both_families_say_is_there_once() {
    let mut name = Name::new(None, &BOTH);
    name.answered(Kind::V4, v4(&[1, 2], S));
    name.answered(Kind::V6, v4(&[2, 3], S)); // as ::ffff:10.0.0.2
    assert_eq!(name.current(), ips(&[1, 2, 3]));
}

#[test]
fn addresses_that_were_good_before_serve_until_there_is_an_answer_and_on_when_there_is_none() {
    let mut name = Name::new(Some(MINUTE), &BOTH);
    let known = (&[ips(&[1, 2]), six()].concat()[..], name.now);
    name.resolution = Resolution::remembering(name.resolution.bounds, &BOTH, known, name.now);
    assert_eq!(name.current(), [ips(&[1, 2]), six()].concat());
    assert_eq!(name.standing(), Standing::Unknown, "asked at once");
    assert_eq!(name.next(), Duration::ZERO);
    name.answered(Kind::V4, v4(&[3], MINUTE));
    assert_eq!(name.current(), [ips(&[3]), six()].concat());
    name.answered(Kind::V6, Answer::Failed);
    assert_eq!(name.current(), [ips(&[3]), six()].concat());
    name.now += MINUTE;
    assert_eq!(name.current(), ips(&[3]), "six are as old as they were");
}
