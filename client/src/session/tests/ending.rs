//! How a client stops.

use super::*;

#[test]
fn a_stopping_client_finishes_and_acknowledges_its_batch_within_its_limit() {
    for answered in [true, false] {
        let mut case = Case::new(1, 3);
        let connection = case.live();
        case.wait(second());
        case.logs[0].append();
        let frame = case.logs[0].frame(4, 4);
        case.hear(connection, Inbound::Frame { stream_key: 0, frame });
        let unsaved = std::mem::take(&mut case.commands);
        assert!(matches!(case.step(Event::Stop), [Command::StopApplier]));
        case.wait(60 * second());
        assert!(
            !case.session.has_ended(),
            "the session waits for the batch, however long it takes"
        );
        case.commands = unsaved;
        case.apply();
        let said = acknowledged(case.step(Event::ApplierEnded));
        assert_eq!(said, [(0, 4)]);
        if answered {
            for seq in [3, 4] {
                let seq = Seq::new(seq).unwrap();
                let answer = Ok(());
                case.hear(connection, Inbound::Acked { stream: 0, seq, answer });
            }
        } else {
            let limit = ClientConfig::new("https://host", "lane", vec![id(0)])
                .limits
                .stop_timeout;
            case.wait(limit / 2);
            assert!(!case.session.has_ended());
            case.wait(limit);
        }
        assert!(case.session.has_ended());
        assert_eq!(case.session.due(), None);
        let reason = StopReason::Requested;
        assert_eq!(case.shown.phase, Phase::Stopped { reason });
        assert_eq!(case.shown.streams[&id(0)].applied, case.logs[0].head());
        assert_eq!(case.shown.token, None);
    }
}

#[test]
fn a_stopping_client_gives_up_a_pending_attempt() {
    let mut case = Case::new(1, 3);
    let connection = case.dial();
    let commands = case.step(Event::Stop);
    assert_eq!(closed(commands), [connection]);
    case.step(Event::ApplierEnded);
    assert!(case.session.has_ended());
}

#[test]
fn a_client_whose_applier_ends_by_itself_stops_with_a_defect() {
    let mut case = Case::new(1, 3);
    case.live();
    case.wait(second());
    case.step(Event::ApplierEnded);
    case.wait(10 * second());
    let reason = StopReason::Defect;
    assert_eq!(case.shown.phase, Phase::Stopped { reason });
}

#[test]
fn a_stopping_client_waits_for_answers_only_while_its_connection_lasts() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.step(Event::Stop);
    case.step(Event::ApplierEnded);
    let ended = |case: &Case| case.session.has_ended();
    assert_eq!(closed(&case.close(ConnectionId(999))), []);
    assert!(!ended(&case), "the acknowledgement is unanswered");
    assert_eq!(closed(&case.close(connection)), [connection]);
    assert!(ended(&case));
}

#[test]
fn only_a_module_without_a_version_in_common_stops_the_client() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    assert!(case.hear(connection, Inbound::Contract(Contract::ours())).is_empty());
    let Contract {
        protocol,
        oldest,
        newest,
    } = Contract::ours();
    let speaks = |oldest, newest| Contract {
        protocol: protocol.clone(),
        oldest,
        newest,
    };
    for neighbour in [speaks(newest, newest + 1), speaks(oldest - 1, oldest)] {
        assert!(case.hear(connection, Inbound::Contract(neighbour)).is_empty());
    }
    for (other, upgrade_required, said) in [
        (speaks(newest + 1, newest + 2), true, "this client is too old"),
        (speaks(oldest - 1, oldest - 1), false, "the module is too old"),
    ] {
        let mut case = Case::new(1, 3);
        let connection = case.live();
        let commands = case.hear(connection, Inbound::Contract(other));
        assert!(matches!(commands, [Command::StopApplier]));
        case.step(Event::ApplierEnded);
        case.close(connection);
        let Phase::Stopped { reason } = &case.shown.phase else {
            panic!("{:?}", case.shown.phase);
        };
        assert_eq!(
            (reason.code(), reason.upgrade_required()),
            ("contract_mismatch", upgrade_required)
        );
        assert!(reason.to_string().contains(said), "{reason}");
    }
}
