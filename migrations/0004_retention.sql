-- How long events are kept, in SpacetimeDB (the window) and here (the log); what stands for a stream's beginning when that
-- is gone; and the epoch, by which a restored database is found out.
--
-- The bridge's role needs, besides what migrations 1 and 2 say: SELECT on sync_retention and sync_snapshots, SELECT and
-- UPDATE on sync_epoch, DELETE on sync_stream_events, EXECUTE on sync_class, sync_purge and sync_put_snapshot. Who puts
-- snapshots needs EXECUTE on sync_put_snapshot, INSERT and UPDATE on sync_snapshots.

-- The policy, one row a class of streams. Change it as the lane runs: the bridge looks once a minute.
create table runtime.sync_retention (
  class text collate "C" primary key,
  -- What the names of its streams begin with. The longest beginning decides; the empty one is every other stream's.
  stream_prefix text collate "C" not null unique,
  -- SpacetimeDB keeps the newest events of a stream: at most so many, none older.
  window_events bigint not null,
  window_age interval not null,
  -- This database keeps at least the newest events: at most so many, none older. Null: all, whatever their age.
  log_events bigint,
  log_age interval,
  -- How far behind a client may be and still be brought up event by event. Null: as far as the log goes.
  replay_budget_events bigint,
  -- Whether its events are shown to clients only when SpacetimeDB holds them durably, whatever a client asks for.
  durable_reads boolean not null default true,
  constraint sync_retention_class check (class ~ '^[a-z][a-z0-9_]{0,63}$'),
  constraint sync_retention_prefix check (octet_length(stream_prefix) <= 255 and stream_prefix ~ '^[A-Za-z0-9._:/@+=~%-]*$'),
  constraint sync_retention_window check (window_events between 1 and 1000000000
    and window_age between interval '1 second' and interval '36500 days'),
  -- What clients are sent here for must be here.
  constraint sync_retention_log check (log_events >= window_events and log_age >= window_age),
  constraint sync_retention_budget check (replay_budget_events >= 1)
);

insert into runtime.sync_retention (class, stream_prefix, window_events, window_age, durable_reads) values
  ('run_summaries', 'runtime.run_summaries', 20000, '7 days', true),
  ('codex_worker_summaries', 'runtime.codex_worker_summaries', 10000, '3 days', true),
  ('codex_worker_events', 'runtime.codex.worker.events', 3000, '1 day', true),
  ('notifications', 'runtime.notifications', 500, '12 hours', false),
  ('otherwise', '', 10000, '1 day', true);

-- The class of a stream.
create function runtime.sync_class(stream_id text) returns runtime.sync_retention language sql stable as $$
  select r from runtime.sync_retention r
    where starts_with(sync_class.stream_id, r.stream_prefix) order by octet_length(r.stream_prefix) desc limit 1
$$;

-- The first event kept, and the chain hash before it (null: chain(0), nothing was ever removed).
alter table runtime.sync_streams
  add column oldest_seq bigint not null default 1,
  add column floor_chain bytea,
  add constraint sync_streams_oldest check (oldest_seq between 1 and head_seq + 1),
  add constraint sync_streams_floor check ((floor_chain is null) = (oldest_seq = 1) and octet_length(floor_chain) = 32);

-- Events leave by retention alone, oldest first.
create or replace function runtime.sync_refuse_change() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' and current_setting('spacetime_sync.purging', true) = 'yes' then
    return null;
  end if;
  raise exception 'expected only inserts into %.%, found %', tg_table_schema, tg_table_name, lower(tg_op)
    using errcode = 'SY007', hint = 'Append a new event that corrects the old one.';
end $$;

-- Removes a stream's oldest events that its class keeps no longer, at most `most` of them, and returns how many. Never
-- one that is not published. With an event its key goes, too: a repeat of it would be a new event. A stream that a writer
-- holds is left for the next time.
create function runtime.sync_purge(stream_id text, most int) returns bigint
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_variable
declare
  class runtime.sync_retention;
  stream record;
  last bigint;
  aged bigint;
  chain bytea;
begin
  class := runtime.sync_class(stream_id);
  if class.log_events is null and class.log_age is null then
    return 0;
  end if;
  select s.head_seq, s.published_seq, s.oldest_seq into stream
    from runtime.sync_streams s where s.stream_id = stream_id collate "C" for no key update skip locked;
  if not found then
    return 0;
  end if;
  last := coalesce(stream.head_seq - class.log_events, 0);
  if class.log_age is not null then
    -- Times never go back within a stream.
    select max(e.seq) into aged from (
      select e.seq, e.committed_at from runtime.sync_stream_events e
        where e.stream_id = stream_id collate "C" and e.seq >= stream.oldest_seq and e.seq < stream.oldest_seq + most
    ) e where e.committed_at < clock_timestamp() - class.log_age;
    last := greatest(last, aged);
  end if;
  last := least(last, stream.published_seq, stream.oldest_seq + most - 1);
  if last < stream.oldest_seq then
    return 0;
  end if;
  select e.chain_hash into strict chain from runtime.sync_stream_events e
    where e.stream_id = stream_id collate "C" and e.seq >= last and e.seq <= last order by e.seq limit 1;
  perform set_config('spacetime_sync.purging', 'yes', true);
  delete from runtime.sync_stream_events e
    where e.stream_id = stream_id collate "C" and e.seq >= stream.oldest_seq and e.seq <= last;
  perform set_config('spacetime_sync.purging', '', true);
  update runtime.sync_streams s set oldest_seq = last + 1, floor_chain = chain where s.stream_id = stream_id collate "C";
  return last + 1 - stream.oldest_seq;
end $$;

-- What stands for the events of a stream up to a seq: what a client starts from that can no longer be brought up event by
-- event. Made by the runtime, the newest one is kept.
create table runtime.sync_snapshots (
  stream_id text collate "C" primary key references runtime.sync_streams,
  doc_key text collate "C" not null,
  -- Of the last event that is in it, and the chain hash there.
  seq bigint not null,
  chain_hash bytea not null,
  payload bytea not null,
  payload_hash bytea not null,
  made_at timestamptz not null default clock_timestamp(),
  constraint sync_snapshots_doc_key check (octet_length(doc_key) between 1 and 512),
  constraint sync_snapshots_payload check (octet_length(payload) between 1 and 16777216)
);

-- Puts a document in the place of the stream's events up to `seq`, which must be one that is kept. An older document than
-- the one that is there changes nothing. Returns whether it is there now.
create function runtime.sync_put_snapshot(stream_id text, doc_key text, seq bigint, payload bytea) returns boolean
language plpgsql as $$
#variable_conflict use_variable
declare
  chain bytea;
begin
  select e.chain_hash into chain from runtime.sync_stream_events e
    where e.stream_id = stream_id collate "C" and e.seq = seq;
  if not found then
    raise exception 'stream "%" has no event at seq %, so nothing stands for its events up to there', stream_id, seq
      using errcode = 'SY008', hint = 'Name the seq of the last event that is in the document.';
  end if;
  insert into runtime.sync_snapshots as s (stream_id, doc_key, seq, chain_hash, payload, payload_hash)
    values (stream_id, doc_key, seq, chain, payload, sha256(payload))
    on conflict on constraint sync_snapshots_pkey do update
      set doc_key = excluded.doc_key, seq = excluded.seq, chain_hash = excluded.chain_hash,
          payload = excluded.payload, payload_hash = excluded.payload_hash, made_at = clock_timestamp()
      where s.seq <= excluded.seq;
  return found;
end $$;

-- One row: which history this is, and how far it has come. The bridge counts the beat and tells SpacetimeDB; a database that
-- was restored to an earlier time is behind what SpacetimeDB was told. `spacetime-sync rewind` begins a new epoch.
create table runtime.sync_epoch (
  singleton boolean primary key default true check (singleton),
  epoch uuid not null default gen_random_uuid(),
  beat bigint not null default 0
) with (fillfactor = 10);

insert into runtime.sync_epoch default values;
