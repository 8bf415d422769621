use super::*;

#[test]
fn a_stream_whose_row_is_corrupt_halts_alone_and_the_link_stays() {
    let mut bench = Bench::new(vec![stream("a"), stream("bad"), stream("c")], |stream_id| Held {
        head: 2,
        ..in_step(stream_id)
    });
    bench.dirty = ["a", "bad", "c"].map(|name| progress(name, 1, 2)).to_vec();
    let link = bench.link_up();
    let (request, at) = bench.until(|command| match command {
        Command::ReadStandings(request, at) if at.len() == 3 => Some((*request, at.clone())),
        _ => None,
    });
    let standings = at.iter().map(|(stream_id, at)| match stream_id.as_str() {
        "bad" => Err("an invalid chain hash".to_owned()),
        _ => Ok(bench.standing(stream_id, *at)),
    });
    let standings = Ok(standings.collect());
    bench.feed(Event::Standings(request, standings));
    let read = [bench.until(reads).0, bench.until(reads).0];
    assert_eq!(read, ["a", "c"]);
    assert!(bench.lane.is_halted(&stream("bad")) && bench.lane.link.up() == Some(link));
    let health = bench.lane.health(bench.now);
    assert!(
        !health.healthy && health.problems[0].contains("stream bad is halted"),
        "{health:?}"
    );
}

#[test]
fn a_failing_batch_is_halved_until_the_bad_stream_is_alone() {
    let mut bench = Bench::new(Vec::new(), in_step);
    let names = ["a", "bad", "c", "d", "e"];
    bench.dirty = names.map(|name| progress(name, 1, 2)).to_vec();
    bench.link_up();
    let mut read = Vec::new();
    while read.len() < 4 || !bench.lane.is_halted(&stream("bad")) {
        let found = bench.until(|command| match command {
            Command::ReadStandings(request, at) if at.iter().any(|(id, _)| id.as_str() == "bad") => Some(Err(*request)),
            other => reads(other).map(Ok),
        });
        match found {
            Err(request) => bench.feed(Event::Standings(request, Err(failure(RefusalClass::Fatal)))),
            Ok((name, _)) => read.push(name),
        }
    }
    read.sort();
    assert_eq!(read, ["a", "c", "d", "e"]);
}
