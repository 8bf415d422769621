//! Carries out the commands of the lane.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spacetime_sync_authority::{self as authority, Authority, AuthorityError};
use spacetime_sync_lane::{
    Answer, Command, Event, Failure, HeadSeal, Level, LinkId, Looked, Notice, Page, RequestId, Sealing, check_frames,
    check_seal, is_doubtful, judge, prepare_looked,
};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{ChainHash, Sealer, Seq, StreamId};
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::{Appended, Link};
use tokio::sync::mpsc;

use super::answers::{from_authority, from_stdb, outcome, row, standing};
use super::{Happened, Runner};
use crate::config::Config;
use crate::upkeep;

impl Runner {
    pub(super) fn carry_out(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            self.do_command(command);
        }
        self.commands = commands;
    }

    fn do_command(&mut self, command: Command) {
        match command {
            Command::Append {
                link,
                call,
                stream_id,
                frame,
            } => {
                let Some(connection) = self.links.get(&link) else {
                    return;
                };
                let events = self.events.clone();
                let done = move |became: Appended| {
                    let answer = match became {
                        Appended::Durable => Answer::Acked,
                        Appended::Refused(refusal) => Answer::Refused(refusal),
                        Appended::Failed(why) => Answer::Lost(why),
                    };
                    let _ = events.send(Happened::Event(Event::Answered(link, call, answer)));
                };
                connection.append(&stream_id, frame.row, &frame.last_chain, frame.last_at_us, done);
            }
            Command::OpenAuthority(request) => {
                let (config, events) = (self.config.clone(), self.events.clone());
                self.tasks.spawn(async move {
                    let authority = &config.authority;
                    let opened = Authority::connect(authority, authority.pool_size).await;
                    let _ = events.send(Happened::Opened(request, opened));
                });
            }
            Command::AskForLead(request) => {
                let Some(mut candidate) = self.candidate.take() else {
                    return;
                };
                let events = self.events.clone();
                self.tasks.spawn(async move {
                    let lead = candidate.try_lead().await;
                    let _ = events.send(Happened::AskedForLead(request, candidate, lead));
                });
            }
            Command::BeginLead => self.begin_lead(),
            Command::EndLead => {
                self.tasks.abort_all();
                self.links.clear();
                self.dials.clear();
                self.desks.iter().for_each(Authority::forget_connections);
            }
            Command::Listen(request) => {
                let events = self.events.clone();
                self.spawn(async move |authority| listen(&authority, request, &events).await);
            }
            Command::SetSleeping(request, sleeping) => self.ask(
                async move |authority| authority.set_sleeping(sleeping).await,
                move |set| Event::SleepingSet(request, set),
            ),
            Command::Look {
                request,
                after,
                limit,
                read,
            } => {
                // The wait for a free thread counts as well: on a busy machine the looks are to become rarer.
                let asked = Instant::now();
                let (config, sealer) = (self.config.clone(), self.sealer.clone());
                self.ask(
                    async move |authority| {
                        let seqs: Vec<_> = read.iter().map(|(stream_id, at)| (stream_id.clone(), at.seq)).collect();
                        let authority::Looked { progress, events } =
                            authority.look(after.as_ref(), limit, &seqs).await?;
                        let took = asked.elapsed();
                        let frames = prepare_looked(&read, &events, config.limits.frame_bytes, &*sealer);
                        Ok((Looked { progress, frames }, took))
                    },
                    move |looked| {
                        let (found, took) = match looked {
                            Ok((found, took)) => (Ok(found), took),
                            Err(failure) => (Err(failure), asked.elapsed()),
                        };
                        Event::Looked { request, found, took }
                    },
                );
            }
            Command::ListStreams { request, after, limit } => self.ask(
                async move |authority| authority.streams_after(after.as_ref(), limit).await,
                move |listed| {
                    let ids = listed.map(|all| all.into_iter().map(|progress| progress.stream_id).collect());
                    Event::Listed(request, ids)
                },
            ),
            Command::ReadStandings(request, at) => self.ask(
                async move |authority| authority.standings(&at).await,
                move |standings| {
                    Event::Standings(request, standings.map(|all| all.into_iter().map(standing).collect()))
                },
            ),
            Command::ReadPage {
                link,
                stream_id,
                after,
                base_chain,
            } => {
                let (config, sealer, id) = (self.config.clone(), self.sealer.clone(), stream_id.clone());
                self.ask(
                    async move |authority| read_page(&authority, &config, &*sealer, &id, after, base_chain).await,
                    move |page| Event::Page {
                        link,
                        stream_id,
                        page: page.and_then(|page| page.ok_or_else(no_seal)),
                    },
                );
            }
            Command::Record(request, records) => self.ask(
                async move |authority| {
                    authority
                        .advance_published(&records.into_iter().map(row).collect::<Vec<_>>())
                        .await
                },
                move |recorded| Event::Recorded(request, recorded.map(outcome)),
            ),
            Command::RecordExactly(request, records) => self.ask(
                async move |authority| {
                    authority
                        .set_published(&records.into_iter().map(row).collect::<Vec<_>>())
                        .await
                },
                move |recorded| Event::Recorded(request, recorded.map(outcome)),
            ),
            Command::ReadPolicy(request) => self.ask(
                async move |authority| authority.retention_classes().await,
                move |classes| Event::Policy(request, classes),
            ),
            Command::ReadEpoch(request) => self.ask(
                async move |authority| authority.epoch().await,
                move |epoch| Event::Epoch(request, epoch),
            ),
            Command::AdvanceBeat(request) => self.ask(
                async move |authority| authority.beat().await,
                move |advanced| Event::BeatAdvanced(request, advanced),
            ),
            Command::Dial(id) => self.dial(id),
            Command::HangUp(id) => {
                if let Some(dial) = self.dials.remove(&id) {
                    dial.abort();
                }
                if let Some(link) = self.links.remove(&id) {
                    // Dropping it is not enough, because a task may still hold it.
                    link.close();
                }
            }
            Command::Relinked => {
                if let Some(neighbour) = &self.neighbour {
                    neighbour.relinked();
                }
            }
            Command::Strayed(strayed) => {
                if let Some(neighbour) = &self.neighbour {
                    neighbour.strayed(strayed);
                }
            }
            Command::ReadHeads(link, request, streams) => self.call(
                link,
                async move |link| link.heads(&streams).await,
                move |heads| Event::Heads(link, request, heads),
            ),
            Command::CheckSeal {
                link,
                request,
                stream_id,
                head,
            } => {
                let sealer = self.sealer.clone();
                self.call(
                    link,
                    async move |link| {
                        let sealing = Sealing {
                            stream_id: &stream_id,
                            sealer: &*sealer,
                        };
                        let held = link.page(&stream_id, head.seq.previous()).await?;
                        Ok(match check_seal(&head, &held.head, &held.frames, sealing) {
                            // There is a row. What is not the frame that it states proves nothing.
                            HeadSeal::Unknown if held.invalid.is_some() => HeadSeal::Missing,
                            sealed => sealed,
                        })
                    },
                    move |sealed| Event::SealChecked(link, request, sealed),
                );
            }
            Command::CheckFrames {
                link,
                request,
                stream_id,
                after,
            } => {
                let sealer = self.sealer.clone();
                self.call(
                    link,
                    async move |link| {
                        let sealing = Sealing {
                            stream_id: &stream_id,
                            sealer: &*sealer,
                        };
                        let held = link.page(&stream_id, after.seq).await?;
                        Ok(check_frames(after, held.oldest_seq, &held.head, held.frames, sealing))
                    },
                    move |checked| Event::FramesChecked(link, request, checked),
                );
            }
            Command::Rewind {
                link,
                request,
                stream_id,
                seen,
                to,
            } => {
                let sealer = self.sealer.clone();
                self.call(
                    link,
                    async move |link| {
                        let seal = sealer.seal(&stream_id, &to);
                        link.rewind_step(&stream_id, seen, to, seal.as_ref()).await
                    },
                    move |rewound| Event::Rewound(link, request, rewound),
                );
            }
            Command::SetRetention(link, request, classes) => self.call(
                link,
                async move |link| link.set_retention(&classes).await,
                move |set| Event::RetentionSet(link, request, set),
            ),
            Command::MarkEpoch(link, request, epoch) => self.call(
                link,
                async move |link| link.mark_epoch(&epoch, false).await,
                move |marked| Event::EpochMarked(link, request, marked.map(|refused| refused.map_or(Ok(()), Err))),
            ),
            Command::ReadJournal(link, request) => self.call(
                link,
                async move |link| link.journal().await,
                move |page| Event::Journal(link, request, page),
            ),
            Command::SettleJournal(link, request, to) => self.call(
                link,
                async move |link| link.settle_journal(to).await,
                move |told| Event::JournalTold(link, request, told),
            ),
            Command::CloseJournal(link, request, settled) => self.call(
                link,
                async move |link| link.close_journal(settled).await,
                move |told| Event::JournalTold(link, request, told),
            ),
            Command::BringBack(link, request, entries) => self.call(
                link,
                async move |link| link.bring_back(entries).await,
                move |told| Event::JournalTold(link, request, told),
            ),
            Command::OpenJournal {
                link,
                request,
                epoch,
                newest,
            } => self.call(
                link,
                async move |link| link.open_journal(&epoch, newest).await,
                move |told| Event::JournalTold(link, request, told),
            ),
            Command::BeginJournal(request) => self.ask(
                async move |authority| authority.begin_journal().await,
                move |begun| Event::JournalBegun(request, begun),
            ),
            Command::FetchJournal(request, after) => self.ask(
                async move |authority| authority.kept_journal(after).await,
                move |entries| Event::JournalFetched(request, entries),
            ),
            Command::KeepJournal {
                request,
                turn,
                entries,
                to,
            } => self.ask(
                async move |authority| authority.keep_journal(turn, &entries, to).await,
                move |kept| Event::JournalKept(request, kept),
            ),
            Command::ForgetJournal(request, turn) => self.ask(
                async move |authority| authority.forget_journal(turn).await,
                move |gone| Event::JournalForgotten(request, gone),
            ),
            Command::Tell(notice) => tell(&notice),
            Command::End(ended) => self.ended = Some(ended),
        }
    }

    /// Starts a task that needs the authority.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&mut self, work: impl FnOnce(Authority) -> F) {
        if let Some(authority) = self.authority.clone() {
            self.tasks.spawn(work(authority));
        }
    }

    /// Starts a question to the authority, which answers with an event.
    fn ask<T, F: Future<Output = Result<T, AuthorityError>> + Send + 'static>(
        &mut self,
        question: impl FnOnce(Authority) -> F,
        event: impl FnOnce(Result<T, Failure>) -> Event + Send + 'static,
    ) where
        T: Send + 'static,
    {
        let events = self.events.clone();
        let Some(authority) = self.authority.clone() else {
            return;
        };
        let answer = question(authority);
        self.tasks.spawn(async move {
            let answer = answer.await.map_err(|error| from_authority(&error));
            let _ = events.send(Happened::Event(event(answer)));
        });
    }

    /// Starts a question on a link, which answers with an event.
    fn call<T, F: Future<Output = Result<T, StdbError>> + Send + 'static>(
        &mut self,
        link: LinkId,
        question: impl FnOnce(Arc<Link>) -> F,
        event: impl FnOnce(Result<T, Failure>) -> Event + Send + 'static,
    ) where
        T: Send + 'static,
    {
        let events = self.events.clone();
        let Some(link) = self.links.get(&link).cloned() else {
            return;
        };
        let answer = question(link);
        self.tasks.spawn(async move {
            let answer = answer.await.map_err(from_stdb);
            let _ = events.send(Happened::Event(event(answer)));
        });
    }

    fn dial(&mut self, id: LinkId) {
        let (target, events) = (self.target.clone(), self.events.clone());
        let dial = self.tasks.spawn(async move {
            let closed = events.clone();
            let on_closed = Arc::new(move |why| {
                let _ = closed.send(Happened::Event(Event::LinkClosed(id, why)));
            });
            let dialed = Link::connect(target, on_closed).await;
            let _ = events.send(Happened::Dialed(id, dialed));
        });
        self.dials.insert(id, dial);
    }

    fn begin_lead(&mut self) {
        let retention = &self.config.retention;
        let (purges, every) = (retention.purge, Duration::from_millis(retention.every_ms));
        if purges {
            let (events, also) = (self.events.clone(), self.events.clone());
            let purged = move |gone| {
                let _ = events.send(Happened::Event(Event::Purged(gone)));
            };
            let kept = move |keys| {
                let _ = also.send(Happened::Event(Event::KeptKeys(keys)));
            };
            self.spawn(move |authority| upkeep::purge(authority, every, purged, kept));
        }
        let sessions = self.config.sessions.as_ref();
        if let Some(days) = sessions.and_then(|sessions| sessions.remember_days) {
            self.spawn(|authority| upkeep::forget_sessions(authority, days));
        }
        self.spawn(upkeep::name_misnamed);
    }
}

/// Listens for wake-ups until the listener fails.
async fn listen(authority: &Authority, request: RequestId, events: &mpsc::UnboundedSender<Happened>) {
    let tell = |listening: Result<(), AuthorityError>| {
        let listening = listening.map_err(|error| from_authority(&error));
        let _ = events.send(Happened::Event(Event::Listening(request, listening)));
    };
    match authority.listen().await {
        Err(error) => tell(Err(error)),
        Ok(mut listener) => {
            tell(Ok(()));
            loop {
                match listener.woken().await {
                    Ok(()) => drop(events.send(Happened::Event(Event::Woken))),
                    Err(error) => return tell(Err(error)),
                }
            }
        }
    }
}

/// No client would apply what is published now.
fn no_seal() -> Failure {
    Failure {
        class: RefusalClass::Retry,
        refusal: None,
        text: "no key seals at the moment: look at the files in the folder of the sealing keys".to_owned(),
    }
}

/// Reads a page of the authority's log, checks it, and seals its frames. `None` if no key seals at the moment.
async fn read_page(
    authority: &Authority,
    config: &Config,
    sealer: &dyn Sealer,
    stream_id: &StreamId,
    after: Seq,
    base_chain: Option<ChainHash>,
) -> Result<Option<Page>, AuthorityError> {
    let limits = &config.limits;
    let base_chain = match base_chain {
        Some(base_chain) => Some(base_chain),
        None => authority.chain_at(stream_id, after).await?,
    };
    let events = authority
        .read_events(stream_id, after, limits.page_events, limits.page_bytes)
        .await?;
    let floor = if is_doubtful(after, base_chain, &events) {
        let progress = authority.position(stream_id).await?;
        progress.map(|progress| progress.floor_seq)
    } else {
        None
    };
    let sealing = Sealing { stream_id, sealer };
    let page = judge(after, base_chain, floor, &events, limits.frame_bytes, sealing);
    Ok(sealer.is_ready().then_some(page))
}

fn tell(notice: &Notice) {
    match notice.level() {
        Level::Debug => tracing::debug!("{notice}"),
        Level::Info => tracing::info!("{notice}"),
        Level::Warn => tracing::warn!("{notice}"),
        Level::Error => tracing::error!("{notice}"),
    }
}
