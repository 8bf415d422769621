//! What the bridge tells the module at intervals: which history the authority holds and how far it has come (the beat), and
//! how long to keep events (the retention policy).

use std::time::Duration;

use rand::Rng;
use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::retention::{RetentionClass, class_of};
use spacetime_sync_proto::{Refusal, StreamId};

use crate::backoff::Backoff;
use crate::ids::Ids;
use crate::message::{Command, Failure};
use crate::notice::Notice;
use crate::{LinkId, RequestId};

/// The first and the longest wait before a new link asks again for the policy.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The retention policy, as the module applies it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Empty if SpacetimeDB is to keep everything.
    classes: Vec<RetentionClass>,
}

impl Policy {
    /// How many of a stream's newest events SpacetimeDB keeps. `None` if it keeps all.
    pub(crate) fn window(&self, stream_id: &StreamId) -> Option<u64> {
        let class = class_of(&self.classes, |class| &class.stream_prefix, stream_id.as_str());
        class.map(|class| class.window_events)
    }
}

#[derive(Debug)]
enum PolicyStep {
    /// Reads the policy at this time.
    Waiting(Duration),
    /// Asks the authority for the policy.
    Reading(RequestId),
    /// Gives this policy to the module.
    Handing(RequestId, Policy),
}

#[derive(Debug)]
enum EpochStep {
    /// The next beat is at this time.
    Waiting(Duration),
    /// Asks the authority for its epoch and beat.
    Reading(RequestId),
    /// Tells the module about them.
    Marking(RequestId),
    /// Counts the authority's beat up.
    Advancing(RequestId),
}

/// What an answer means for the lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Fine,
    /// The authority's epoch has changed, because an operator has repaired the lane.
    EpochBegun,
    /// The module has taken the beat, or says that this is not the history that the bridge carried before.
    Marked(Option<Refusal>),
    /// The module refuses every call on this link.
    DropLink(String),
}

#[derive(Debug)]
pub(crate) struct Beats {
    beat: Duration,
    every: Duration,
    applies_windows: bool,
    /// The link that is up.
    link: Option<Linked>,
    /// The last policy that the module took, on any link.
    policy: Policy,
    /// The authority's epoch at the last beat.
    epoch: Option<String>,
    backoff: Backoff,
}

/// What the bridge has told the module on one link.
#[derive(Debug)]
struct Linked {
    id: LinkId,
    policy: PolicyStep,
    epoch: EpochStep,
    /// Whether the module has taken a policy on this link.
    has_policy: bool,
    /// Whether the module has answered a policy on this link, so that streams may be compared.
    settled: bool,
    /// Whether the log says already that the authority was restored.
    restored: bool,
}

impl Beats {
    pub(crate) fn new(beat: Duration, every: Duration, applies_windows: bool) -> Self {
        Self {
            beat,
            every,
            applies_windows,
            link: None,
            policy: Policy::default(),
            epoch: None,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
        }
    }

    pub(crate) fn link_up(&mut self, now: Duration, id: LinkId) {
        self.backoff.reset();
        self.link = Some(Linked {
            id,
            policy: PolicyStep::Waiting(now),
            epoch: EpochStep::Waiting(now),
            has_policy: false,
            settled: false,
            restored: false,
        });
    }

    pub(crate) fn link_down(&mut self) {
        self.link = None;
    }

    /// The policy that the module applies, once that is known on this link.
    pub(crate) fn settled_policy(&self) -> Option<&Policy> {
        self.link
            .as_ref()
            .is_some_and(|link| link.settled)
            .then_some(&self.policy)
    }

    pub(crate) fn next_due(&self) -> Option<Duration> {
        let link = self.link.as_ref()?;
        let policy = match link.policy {
            PolicyStep::Waiting(until) => Some(until),
            PolicyStep::Reading(_) | PolicyStep::Handing(..) => None,
        };
        let epoch = match link.epoch {
            EpochStep::Waiting(until) => Some(until),
            EpochStep::Reading(_) | EpochStep::Marking(_) | EpochStep::Advancing(_) => None,
        };
        match (policy, epoch) {
            (Some(policy), Some(epoch)) => Some(policy.min(epoch)),
            (policy, epoch) => policy.or(epoch),
        }
    }

    pub(crate) fn turn(&mut self, now: Duration, ids: &mut Ids, out: &mut Vec<Command>) {
        let Some(link) = &mut self.link else { return };
        if matches!(link.policy, PolicyStep::Waiting(until) if until <= now) {
            if self.applies_windows {
                let request = ids.request();
                link.policy = PolicyStep::Reading(request);
                out.push(Command::ReadPolicy(request));
            } else {
                self.hand_on(now, Policy::default(), ids, out);
            }
        }
        let Some(link) = &mut self.link else { return };
        if matches!(link.epoch, EpochStep::Waiting(until) if until <= now) {
            let request = ids.request();
            link.epoch = EpochStep::Reading(request);
            out.push(Command::ReadEpoch(request));
        }
    }

    /// Gives the module a policy, unless it has taken this very policy on this link.
    fn hand_on(&mut self, now: Duration, policy: Policy, ids: &mut Ids, out: &mut Vec<Command>) {
        let Some(link) = &mut self.link else { return };
        if link.has_policy && policy == self.policy {
            link.policy = PolicyStep::Waiting(now + self.every);
            return;
        }
        let request = ids.request();
        out.push(Command::SetRetention(link.id, request, policy.classes.clone()));
        link.policy = PolicyStep::Handing(request, policy);
    }

    /// The authority has answered with its policy.
    pub(crate) fn read(
        &mut self,
        now: Duration,
        request: RequestId,
        classes: Result<Vec<RetentionClass>, Failure>,
        dice: &mut impl Rng,
        ids: &mut Ids,
        out: &mut Vec<Command>,
    ) {
        let Some(link) = &mut self.link else { return };
        if !matches!(link.policy, PolicyStep::Reading(reading) if reading == request) {
            return;
        }
        match classes {
            Ok(classes) => self.hand_on(now, Policy { classes }, ids, out),
            Err(failure) => {
                out.push(Command::Tell(Notice::PolicyNotHandedOn { why: failure.text }));
                // On a new link, streams wait for the policy before they are compared.
                let wait = if link.settled {
                    self.every
                } else {
                    self.backoff.next(dice)
                };
                link.policy = PolicyStep::Waiting(now + wait);
            }
        }
    }

    /// The module has answered a policy.
    pub(crate) fn handed(
        &mut self,
        now: Duration,
        request: RequestId,
        handed: Result<(), Failure>,
        out: &mut Vec<Command>,
    ) -> Verdict {
        let Some(link) = &mut self.link else {
            return Verdict::Fine;
        };
        let PolicyStep::Handing(handing, policy) = &mut link.policy else {
            return Verdict::Fine;
        };
        if *handing != request {
            return Verdict::Fine;
        }
        let policy = std::mem::take(policy);
        link.policy = PolicyStep::Waiting(now + self.every);
        // If the module does not take the policy, it keeps the one that it has. Events must not wait for that.
        link.settled = true;
        match handed {
            Ok(()) => {
                link.has_policy = true;
                if policy != self.policy {
                    let classes = policy.classes.len();
                    out.push(Command::Tell(Notice::PolicyTaken { classes }));
                    self.policy = policy;
                }
                Verdict::Fine
            }
            Err(failure) => match (failure.class, failure.refusal) {
                (RefusalClass::Fatal, _) => Verdict::DropLink(failure.text),
                (RefusalClass::Reject, Some(refusal)) => {
                    out.push(Command::Tell(Notice::PolicyRefused { refusal }));
                    Verdict::Fine
                }
                (RefusalClass::Retry, _) | (RefusalClass::Reject, None) => {
                    out.push(Command::Tell(Notice::PolicyNotHandedOn { why: failure.text }));
                    Verdict::Fine
                }
            },
        }
    }

    /// The authority has answered with its epoch and beat.
    pub(crate) fn epoch(
        &mut self,
        now: Duration,
        request: RequestId,
        epoch: Result<AuthorityEpoch, Failure>,
        ids: &mut Ids,
        out: &mut Vec<Command>,
    ) -> Verdict {
        let Some(link) = &mut self.link else {
            return Verdict::Fine;
        };
        if !matches!(link.epoch, EpochStep::Reading(reading) if reading == request) {
            return Verdict::Fine;
        }
        match epoch {
            Ok(epoch) => {
                let before = self.epoch.replace(epoch.epoch.clone());
                if before.is_some_and(|before| before != epoch.epoch) {
                    link.epoch = EpochStep::Waiting(now + self.beat);
                    return Verdict::EpochBegun;
                }
                let request = ids.request();
                link.epoch = EpochStep::Marking(request);
                out.push(Command::MarkEpoch(link.id, request, epoch));
            }
            Err(failure) => self.missed(now, failure, out),
        }
        Verdict::Fine
    }

    /// The module has answered a beat.
    pub(crate) fn marked(
        &mut self,
        now: Duration,
        request: RequestId,
        marked: Result<Result<(), Refusal>, Failure>,
        ids: &mut Ids,
        out: &mut Vec<Command>,
    ) -> Verdict {
        let Some(link) = &mut self.link else {
            return Verdict::Fine;
        };
        if !matches!(link.epoch, EpochStep::Marking(marking) if marking == request) {
            return Verdict::Fine;
        }
        match marked {
            Ok(Ok(())) => {
                link.restored = false;
                let request = ids.request();
                link.epoch = EpochStep::Advancing(request);
                out.push(Command::AdvanceBeat(request));
                Verdict::Marked(None)
            }
            // The beat of a restored authority does not move. Otherwise it would catch up, and hide that events are lost.
            Ok(Err(refusal)) => {
                if !std::mem::replace(&mut link.restored, true) {
                    let refusal = refusal.clone();
                    out.push(Command::Tell(Notice::Restored { refusal }));
                }
                link.epoch = EpochStep::Waiting(now + self.beat);
                Verdict::Marked(Some(refusal))
            }
            Err(failure) if failure.class == RefusalClass::Fatal => Verdict::DropLink(failure.text),
            Err(failure) => {
                self.missed(now, failure, out);
                Verdict::Fine
            }
        }
    }

    /// The authority has counted its beat up.
    pub(crate) fn advanced(
        &mut self,
        now: Duration,
        request: RequestId,
        advanced: Result<(), Failure>,
        out: &mut Vec<Command>,
    ) {
        let Some(link) = &mut self.link else { return };
        if !matches!(link.epoch, EpochStep::Advancing(advancing) if advancing == request) {
            return;
        }
        match advanced {
            Ok(()) => link.epoch = EpochStep::Waiting(now + self.beat),
            Err(failure) => self.missed(now, failure, out),
        }
    }

    /// A beat has failed; the next one is due as usual.
    fn missed(&mut self, now: Duration, failure: Failure, out: &mut Vec<Command>) {
        if let Some(link) = &mut self.link {
            link.epoch = EpochStep::Waiting(now + self.beat);
        }
        out.push(Command::Tell(Notice::NoBeat { why: failure.text }));
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const NOW: Duration = Duration::from_secs(1);
    const BEAT: Duration = Duration::from_secs(10);
    const EVERY: Duration = Duration::from_secs(60);

    struct Bench {
        beats: Beats,
        ids: Ids,
        dice: SmallRng,
        out: Vec<Command>,
    }

    fn classes(window_events: u64) -> Vec<RetentionClass> {
        vec![RetentionClass {
            class: "all".to_owned(),
            stream_prefix: String::new(),
            window_events,
            window_age_us: 1,
            durable_reads: true,
        }]
    }

    fn failure(class: RefusalClass) -> Failure {
        Failure {
            class,
            refusal: None,
            text: "no".to_owned(),
        }
    }

    impl Bench {
        fn new() -> Self {
            Self {
                beats: Beats::new(BEAT, EVERY, true),
                ids: Ids::default(),
                dice: SmallRng::seed_from_u64(1),
                out: Vec::new(),
            }
        }

        fn turn(&mut self, now: Duration) -> Vec<Command> {
            self.beats.turn(now, &mut self.ids, &mut self.out);
            std::mem::take(&mut self.out)
        }

        fn link_up(&mut self, now: Duration) -> (RequestId, RequestId) {
            let id = self.ids.link();
            self.beats.link_up(now, id);
            match self.turn(now)[..] {
                [Command::ReadPolicy(policy), Command::ReadEpoch(epoch)] => (policy, epoch),
                ref other => panic!("{other:?}"),
            }
        }

        fn read(&mut self, now: Duration, request: RequestId, classes: Vec<RetentionClass>) -> Vec<Command> {
            let (beats, ids, out) = (&mut self.beats, &mut self.ids, &mut self.out);
            beats.read(now, request, Ok(classes), &mut self.dice, ids, out);
            std::mem::take(&mut self.out)
        }

        fn epoch(&mut self, now: Duration, request: RequestId, epoch: &str) -> (Verdict, Vec<Command>) {
            let epoch = AuthorityEpoch {
                epoch: epoch.to_owned(),
                beat: 1,
            };
            let verdict = self.beats.epoch(now, request, Ok(epoch), &mut self.ids, &mut self.out);
            (verdict, std::mem::take(&mut self.out))
        }

        fn marked(
            &mut self,
            now: Duration,
            request: RequestId,
            marked: Result<(), Failure>,
        ) -> (Verdict, Vec<Command>) {
            let verdict = self
                .beats
                .marked(now, request, marked.map(Ok), &mut self.ids, &mut self.out);
            (verdict, std::mem::take(&mut self.out))
        }

        fn advanced(&mut self, now: Duration, request: RequestId, advanced: Result<(), Failure>) -> Vec<Command> {
            self.beats.advanced(now, request, advanced, &mut self.out);
            std::mem::take(&mut self.out)
        }
    }

    fn policy_request(commands: &[Command]) -> RequestId {
        match commands {
            [Command::ReadPolicy(request) | Command::SetRetention(_, request, _)] => *request,
            other => panic!("{other:?}"),
        }
    }

    fn beat_request(commands: &[Command]) -> RequestId {
        match commands {
            [Command::ReadEpoch(request) | Command::MarkEpoch(_, request, _) | Command::AdvanceBeat(request)] => {
                *request
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_module_is_given_the_policy_once_on_each_link_and_again_when_it_changes() {
        let mut bench = Bench::new();
        for _ in 0..2 {
            let (policy, _) = bench.link_up(NOW);
            let [Command::SetRetention(_, request, _)] = bench.read(NOW, policy, classes(7))[..] else {
                panic!("the module is not given the policy")
            };
            assert_eq!(bench.beats.settled_policy(), None);
            bench.beats.handed(NOW, request, Ok(()), &mut bench.out);
            bench.out.clear();
            let any = StreamId::new("any").unwrap();
            assert_eq!(bench.beats.settled_policy().unwrap().window(&any), Some(7));
        }
        let again = |bench: &mut Bench, now: Duration| match bench.turn(now)[..] {
            [Command::ReadPolicy(request), ..] => request,
            ref other => panic!("{other:?}"),
        };
        let request = again(&mut bench, NOW + EVERY);
        assert_eq!(bench.read(NOW + EVERY, request, classes(7)), []);
        let request = again(&mut bench, NOW + 2 * EVERY);
        let changed = bench.read(NOW + 2 * EVERY, request, classes(8));
        assert!(matches!(changed[..], [Command::SetRetention(..)]), "{changed:?}");
    }

    #[test]
    fn streams_do_not_wait_for_a_policy_that_the_module_refuses() {
        let mut bench = Bench::new();
        let (policy, _) = bench.link_up(NOW);
        let [Command::SetRetention(_, request, _)] = bench.read(NOW, policy, classes(7))[..] else {
            panic!("the module is not given the policy")
        };
        let refused = Err(failure(RefusalClass::Reject));
        assert_eq!(bench.beats.handed(NOW, request, refused, &mut bench.out), Verdict::Fine);
        let any = StreamId::new("any").unwrap();
        assert_eq!(bench.beats.settled_policy().unwrap().window(&any), None);
    }

    #[test]
    fn policy_and_beat_are_due_each_at_its_own_interval() {
        let mut bench = Bench::new();
        let (policy, epoch) = bench.link_up(NOW);
        assert_eq!(bench.beats.next_due(), None, "both are under way");
        let request = policy_request(&bench.read(NOW, policy, classes(7)));
        bench.beats.handed(NOW, request, Ok(()), &mut bench.out);
        bench.out.clear();
        assert_eq!(bench.beats.next_due(), Some(NOW + EVERY));
        let request = beat_request(&bench.epoch(NOW, epoch, "one").1);
        let request = beat_request(&bench.marked(NOW, request, Ok(())).1);
        assert_eq!(bench.advanced(NOW, request, Ok(())), []);
        assert_eq!(bench.beats.next_due(), Some(NOW + BEAT));
        let mut now = NOW + BEAT;
        beat_request(&bench.turn(now));
        for answer in [Ok(classes(7)), Err(failure(RefusalClass::Retry))] {
            now = bench.beats.next_due().unwrap();
            let request = policy_request(&bench.turn(now));
            let (beats, ids, out) = (&mut bench.beats, &mut bench.ids, &mut bench.out);
            beats.read(now, request, answer, &mut bench.dice, ids, out);
            assert_eq!(bench.beats.next_due(), Some(now + EVERY), "the policy is as it was");
            bench.out.clear();
        }
        assert_eq!(now, NOW + 2 * EVERY);
    }

    #[test]
    fn a_beat_that_fails_is_told_and_the_next_one_comes_as_usual() {
        let away = || failure(RefusalClass::Retry);
        let no_beat = || [Command::Tell(Notice::NoBeat { why: "no".to_owned() })];
        let mut bench = Bench::new();
        let (_, request) = bench.link_up(NOW);
        let (beats, ids, out) = (&mut bench.beats, &mut bench.ids, &mut bench.out);
        assert_eq!(beats.epoch(NOW, request, Err(away()), ids, out), Verdict::Fine);
        assert_eq!(std::mem::take(out), no_beat());
        let mut now = NOW;
        let mut begin = |bench: &mut Bench| {
            assert_eq!(bench.beats.next_due(), Some(now + BEAT));
            now += BEAT;
            let request = beat_request(&bench.turn(now));
            (now, beat_request(&bench.epoch(now, request, "one").1))
        };
        let (at, request) = begin(&mut bench);
        let (verdict, told) = bench.marked(at, request, Err(away()));
        assert_eq!((verdict, &told[..]), (Verdict::Fine, &no_beat()[..]));
        let (at, request) = begin(&mut bench);
        let request = beat_request(&bench.marked(at, request, Ok(())).1);
        assert_eq!(bench.advanced(at, request, Err(away())), no_beat());
        begin(&mut bench);
    }

    #[test]
    fn a_module_that_refuses_every_call_costs_the_link_at_a_beat() {
        let mut bench = Bench::new();
        let (_, epoch) = bench.link_up(NOW);
        let request = beat_request(&bench.epoch(NOW, epoch, "one").1);
        let fatal = Err(failure(RefusalClass::Fatal));
        assert_eq!(bench.marked(NOW, request, fatal).0, Verdict::DropLink("no".to_owned()));
    }

    #[test]
    fn the_beat_of_a_restored_authority_does_not_move() {
        let mut bench = Bench::new();
        let (_, epoch) = bench.link_up(NOW);
        let (_, told) = bench.epoch(NOW, epoch, "one");
        let [Command::MarkEpoch(_, request, _)] = told[..] else {
            panic!("{told:?}")
        };
        let refusal = Refusal::new(spacetime_sync_proto::RefusalCode::EpochBehind, "behind");
        let verdict = bench
            .beats
            .marked(NOW, request, Ok(Err(refusal.clone())), &mut bench.ids, &mut bench.out);
        assert_eq!(verdict, Verdict::Marked(Some(refusal.clone())));
        assert_eq!(bench.out, [Command::Tell(Notice::Restored { refusal })]);
    }

    #[test]
    fn a_new_epoch_is_noticed_even_on_a_new_link() {
        let mut bench = Bench::new();
        let (_, epoch) = bench.link_up(NOW);
        assert_eq!(bench.epoch(NOW, epoch, "one").0, Verdict::Fine);
        let (_, epoch) = bench.link_up(NOW);
        assert_eq!(bench.epoch(NOW, epoch, "two").0, Verdict::EpochBegun);
        let (_, epoch) = bench.link_up(NOW);
        assert_eq!(bench.epoch(NOW, epoch, "two").0, Verdict::Fine);
    }
}
