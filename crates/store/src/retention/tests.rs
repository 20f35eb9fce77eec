//! The rules against a model that looks at whole histories: the caller's loop, "judge the oldest until it stays", against
//! "how many must go", counted from the end that stays.

use proptest::prelude::*;

use super::*;

const HOUR_MS: u64 = 3_600_000;
const NOW_MS: u64 = 1_000 * HOUR_MS;

#[derive(Debug, Clone)]
struct Segment {
    length: u64,
    age_ms: u64,
    reserved: Duration,
}

#[derive(Debug, Clone)]
struct Case {
    rules: Retention,
    segments: Vec<Segment>,
    hour: u8,
    active_bytes: u64,
    others_bytes: u64,
    available_bytes: u64,
    covered: u64,
}

impl Case {
    fn end(&self, at: usize) -> u64 {
        self.segments[..=at].iter().map(|segment| segment.length).sum()
    }

    /// With the first `gone` segments removed.
    fn log_bytes(&self, gone: usize) -> u64 {
        self.segments[gone..].iter().map(|segment| segment.length).sum::<u64>() + self.active_bytes
    }

    fn space(&self, gone: usize) -> Space {
        let freed: u64 = self.segments[..gone].iter().map(|segment| segment.length).sum();
        let before = Space {
            used_bytes: self.log_bytes(0) + self.others_bytes,
            available_bytes: self.available_bytes,
        };
        before.with_freed(freed)
    }

    fn judge(&self, at: usize) -> Verdict {
        let situation = Situation {
            now_ms: NOW_MS,
            hour: self.hour,
            log_bytes: self.log_bytes(at),
            space: self.space(at),
            covered: self.covered,
        };
        let segment = &self.segments[at];
        let oldest = Oldest {
            end: self.end(at),
            last_store_time_ms: NOW_MS - segment.age_ms,
            reserved: segment.reserved,
        };
        judge(&self.rules, &situation, &oldest)
    }

    /// What the maintenance thread does.
    fn removed(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        while reasons.len() < self.segments.len()
            && let Verdict::Goes(reason) = self.judge(reasons.len())
        {
            reasons.push(reason);
        }
        reasons
    }

    fn expired(&self, at: usize) -> bool {
        self.segments[at].age_ms as u128 >= self.segments[at].reserved.as_millis()
    }

    /// Exact, by other arithmetic than the code's.
    fn used_over(&self, gone: usize, percent: u8) -> bool {
        let space = self.space(gone);
        let (used, all) = (space.used_bytes, space.used_bytes + space.available_bytes);
        let limit = all / 100 * u64::from(percent) + all % 100 * u64::from(percent) / 100;
        used > limit
    }

    /// The model: `n` is right if each of the first `n` had a reason when it was the oldest and was not needed, and the
    /// one behind them has none or is needed.
    fn must_go(&self) -> usize {
        let has_reason = |at: usize| {
            let by_size = self.rules.size_limit_bytes.is_some_and(|limit| self.log_bytes(at) > limit);
            let by_age = self.expired(at)
                && (self.rules.delete_hours.contains(&self.hour)
                    || self.used_over(at, self.rules.max_used_percent));
            by_size || by_age || self.used_over(at, self.rules.clean_forcibly_percent)
        };
        let free = |at: usize| self.end(at) <= self.covered && has_reason(at);
        (0..=self.segments.len())
            .find(|n| (0..*n).all(free) && (*n == self.segments.len() || !free(*n)))
            .unwrap()
    }
}

fn segment() -> impl Strategy<Value = Segment> {
    let reserved = prop_oneof![Just(72_u64), Just(24), Just(0), 0..200_u64];
    (1..64_u64, prop_oneof![0..200 * HOUR_MS, (0..200_u64).prop_map(|hours| hours * HOUR_MS)], reserved)
        .prop_map(|(length, age_ms, reserved)| Segment {
            length,
            age_ms,
            reserved: Duration::from_millis(reserved * HOUR_MS),
        })
}

fn case() -> impl Strategy<Value = Case> {
    let rules = (
        prop::collection::vec(0..24_u8, 0..3),
        prop::option::of(0..800_u64),
        prop::collection::vec(1..=100_u8, 3),
    )
        .prop_map(|(delete_hours, size_limit_bytes, mut ladder)| {
            ladder.sort_unstable();
            Retention {
                delete_hours,
                size_limit_bytes,
                max_used_percent: ladder[0],
                clean_forcibly_percent: ladder[1],
                warning_percent: ladder[2],
                ..Retention::default()
            }
        });
    let log = (prop::collection::vec(segment(), 0..20), 1..64_u64);
    let disk = (0..500_u64, prop_oneof![Just(1_000_000_u64), 0..600_u64]);
    (rules, log, 0..24_u8, disk, prop_oneof![Just(u64::MAX), 0..900_u64]).prop_map(
        |(rules, (mut segments, active_bytes), hour, (others_bytes, available_bytes), covered)| {
            // The log is in order of time.
            let mut ages: Vec<_> = segments.iter().map(|segment| segment.age_ms).collect();
            ages.sort_unstable_by(|a, b| b.cmp(a));
            segments.iter_mut().zip(ages).for_each(|(segment, age_ms)| segment.age_ms = age_ms);
            Case { rules, segments, hour, active_bytes, others_bytes, available_bytes, covered }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn exactly_those_go_that_the_model_says(case in case()) {
        prop_assert_eq!(case.removed().len(), case.must_go());
    }

    /// What each rule promises on its own, whatever the others do.
    #[test]
    fn nothing_needed_goes_and_nothing_is_left_that_must_go(case in case()) {
        let reasons = case.removed();
        let gone = reasons.len();
        if gone > 0 {
            prop_assert!(case.end(gone - 1) <= case.covered, "a start needs what was removed");
        }
        for (at, reason) in reasons.iter().enumerate() {
            let by_age = matches!(reason, Reason::Expired | Reason::ExpiredDiskUsed);
            prop_assert!(!by_age || case.expired(at));
            prop_assert!(*reason != Reason::SizeLimit || case.rules.size_limit_bytes.is_some());
        }
        if gone == case.segments.len() || case.end(gone) > case.covered {
            return Ok(());
        }
        prop_assert!(case.rules.size_limit_bytes.is_none_or(|limit| case.log_bytes(gone) <= limit));
        prop_assert!(!case.used_over(gone, case.rules.clean_forcibly_percent));
        if case.expired(gone) {
            prop_assert!(!case.rules.delete_hours.contains(&case.hour));
            prop_assert!(!case.used_over(gone, case.rules.max_used_percent));
        }
    }

    #[test]
    fn messages_are_refused_exactly_beyond_the_last_rung(
        used_bytes in prop_oneof![0..100_000_u64, 0..10_u64],
        available_bytes in prop_oneof![0..100_000_u64, 0..10_u64],
        warning_percent in 1..=100_u8,
    ) {
        let rules = Retention { warning_percent, ..Retention::default() };
        let allowed_bytes = (used_bytes + available_bytes) * u64::from(warning_percent) / 100;
        match refusal(&rules, Space { used_bytes, available_bytes }) {
            Some(AppendError::DiskUsed { used_percent, limit_percent }) => {
                prop_assert!(used_bytes > allowed_bytes && used_percent > limit_percent);
            }
            other => prop_assert!(other.is_none() && used_bytes <= allowed_bytes),
        }
    }
}

fn one(age_hours: u64, used_percent: u64, hour: u8) -> Verdict {
    let case = Case {
        rules: Retention::default(),
        segments: vec![Segment {
            length: 1,
            age_ms: age_hours * HOUR_MS,
            reserved: Retention::default().reserved,
        }],
        hour,
        active_bytes: 1,
        others_bytes: used_percent * 1000 - 2,
        available_bytes: (100 - used_percent) * 1000,
        covered: u64::MAX,
    };
    case.judge(0)
}

#[test]
fn the_defaults_are_rocketmqs() {
    assert_eq!(one(71, 10, 4), Verdict::Stays);
    assert_eq!(one(72, 10, 3), Verdict::Stays);
    assert_eq!(one(72, 10, 4), Verdict::Goes(Reason::Expired));
    assert_eq!(one(72, 75, 3), Verdict::Stays);
    assert_eq!(one(72, 76, 3), Verdict::Goes(Reason::ExpiredDiskUsed));
    assert_eq!(one(0, 85, 4), Verdict::Stays);
    assert_eq!(one(0, 86, 3), Verdict::Goes(Reason::DiskUsed));
    let space = |used_bytes| Space { used_bytes, available_bytes: 100 - used_bytes };
    assert!(refusal(&Retention::default(), space(90)).is_none());
    assert!(refusal(&Retention::default(), space(91)).is_some());
}

#[test]
fn a_file_system_without_a_byte_is_no_division_by_zero() {
    assert!(refusal(&Retention::default(), Space { used_bytes: 0, available_bytes: 0 }).is_none());
}

#[test]
fn a_ladder_that_goes_down_is_refused() {
    let check = |max, forcibly, warning| {
        let rules = Retention {
            max_used_percent: max,
            clean_forcibly_percent: forcibly,
            warning_percent: warning,
            ..Retention::default()
        };
        rules.check(1 << 20).is_ok()
    };
    assert!(check(75, 85, 90) && check(100, 100, 100) && check(1, 1, 1));
    assert!(!check(0, 85, 90) && !check(86, 85, 90) && !check(75, 91, 90) && !check(75, 85, 101));
    assert!(Retention { delete_hours: vec![24], ..Retention::default() }.check(1 << 20).is_err());
    let limited = |size_limit_bytes| Retention { size_limit_bytes, ..Retention::default() };
    assert!(
        limited(Some(3 << 20)).check(1 << 20).is_ok() && limited(Some((3 << 20) - 1)).check(1 << 20).is_err()
    );
}
