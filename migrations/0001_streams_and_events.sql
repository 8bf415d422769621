-- The authority of the lane: the only place where an event comes into being.
--
-- Append-only, like every migration: once merged it is never edited. Works on Postgres 15 and later.
-- What is hashed, and what a name may hold, is defined by the contract crate (proto/src/hash.rs, id.rs, limit.rs);
-- the functions below must agree with it byte for byte, and tests/scenarios/lane/authority.rs holds them to it.
--
-- Errors are of class SY, so that a caller can tell them from everything else:
--   SY001 idempotency key already used for another event      SY005 payload empty or too large
--   SY002 stream_id is no name of the lane                    SY006 arrays of a batch do not fit together
--   SY003 idempotency_key is empty, too long or malformed     SY007 events are never changed or removed
--   SY004 kind is no name of the lane
--
-- A role that appends needs: USAGE on schema runtime, EXECUTE on the sync_append functions, SELECT, INSERT and UPDATE on
-- sync_streams, SELECT and INSERT on sync_stream_events, SELECT on sync_bridge_wake. The functions run with
-- the caller's rights: a SECURITY DEFINER function is only safe with a pinned search_path, which costs every call.

do $$
begin
  if current_setting('server_version_num')::int < 150000 then
    raise exception 'Postgres % is too old: 15 or later is needed', current_setting('server_version')
      using hint = 'Upgrade the server.';
  end if;
  if getdatabaseencoding() <> 'UTF8' then
    raise exception 'the database has encoding %, expected UTF8', getdatabaseencoding()
      using hint = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0.';
  end if;
end $$;

create schema if not exists runtime;

-- Text is compared byte by byte (COLLATE "C"): two to three times cheaper in an index than a language's order, immune
-- to upgrades of the C library, and the same order as Rust's.

-- One row a stream. Its row lock, held to commit, is what makes seqs free of gaps: who sees n sees 1..n-1.
create table runtime.sync_streams (
  stream_id text collate "C" primary key,
  -- The last seq, and chain_hash of that event; chain(0) while there is none.
  head_seq bigint not null default 0,
  head_chain bytea not null,
  -- committed_at of the last event: the next one is never older, even when the clock steps back.
  head_at timestamptz,
  -- What SpacetimeDB is known to hold durably. Only the bridge writes it.
  published_seq bigint not null default 0,
  published_at timestamptz,
  -- An index predicate over head_seq itself would make every append a non-HOT update, for Postgres then counts head_seq
  -- as indexed. This column only changes between clean and dirty, so appends to a stream that is dirty already stay HOT:
  -- 187,684 of 187,754 updates in pg_stat_user_tables.n_tup_hot_upd, with 16 streams and 16 writers.
  dirty boolean not null generated always as (published_seq < head_seq) stored,
  created_at timestamptz not null default clock_timestamp(),
  constraint sync_streams_id_length check (octet_length(stream_id) between 1 and 255),
  constraint sync_streams_chain_length check (octet_length(head_chain) = 32),
  constraint sync_streams_published check (published_seq >= 0 and published_seq <= head_seq)
) with (
  -- Room on every page for the versions that an append leaves behind, and early vacuuming: the table is small and hot.
  fillfactor = 25,
  autovacuum_vacuum_scale_factor = 0.05,
  autovacuum_vacuum_threshold = 1000
);

create index sync_streams_dirty on runtime.sync_streams (stream_id) where dirty;

create table runtime.sync_stream_events (
  stream_id text collate "C" not null,
  seq bigint not null,
  committed_at timestamptz not null,
  idempotency_key text collate "C" not null,
  kind text collate "C" not null,
  payload bytea not null,
  payload_hash bytea not null,
  chain_hash bytea not null,
  constraint sync_stream_events_pkey primary key (stream_id, seq),
  constraint sync_stream_events_key unique (stream_id, idempotency_key)
) with (
  -- Inserts only: what vacuum has to do is freeze and mark pages all-visible, in small steps.
  autovacuum_vacuum_insert_scale_factor = 0.05
);

-- Events are never changed or removed. A trigger per statement costs an insert nothing, for it only fires on the
-- statements that it refuses. Whoever must erase an event (by law, say) disables it in that transaction, as the owner,
-- and knows that the chain then no longer proves the stream.
create function runtime.sync_refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'expected only inserts into %.%, found %', tg_table_schema, tg_table_name, lower(tg_op)
    using errcode = 'SY007', hint = 'Append a new event that corrects the old one.';
end $$;

create trigger sync_stream_events_append_only
  before update or delete or truncate on runtime.sync_stream_events
  for each statement execute function runtime.sync_refuse_change();

-- One row: whether a bridge sleeps and wants a notification on channel sync_wake. An append that turns a clean stream
-- dirty looks here; no other does. NOTIFY takes a lock that all commits of the server share, so it is sent to a bridge that
-- sleeps and to nobody else. A bridge that falls asleep at this very moment may be missed: it polls, slowly, and the
-- notification is only a hint.
create table runtime.sync_bridge_wake (
  singleton boolean primary key default true check (singleton),
  sleeping boolean not null default false
) with (fillfactor = 10);

insert into runtime.sync_bridge_wake default values;

-- chain(0) of a stream. Refuses what is no name of the lane.
create function runtime.sync_genesis(stream_id text) returns bytea language plpgsql immutable parallel safe as $$
begin
  if octet_length(stream_id) between 1 and 255 is not true then
    raise exception 'stream_id has % bytes, expected 1 to 255', coalesce(octet_length(stream_id)::text, 'no')
      using errcode = 'SY002', hint = 'Name the stream, e.g. runtime.run.42.events.';
  end if;
  if stream_id collate "C" ~ '[^A-Za-z0-9._:/@+=~%-]' then
    raise exception 'stream_id holds "%", expected only ASCII letters and digits and . _ - : / @ + = ~ %%',
        substring(stream_id collate "C" from '[^A-Za-z0-9._:/@+=~%-]')
      using errcode = 'SY002', hint = 'Percent-encode other characters.';
  end if;
  return sha256(convert_to('spacetime.sync.v1/stream', 'UTF8') || '\x00'::bytea || convert_to(stream_id, 'UTF8'));
end $$;

-- Raises what is wrong with a key, a kind or a payload; returns when nothing is. Only called when something is.
create function runtime.sync_refuse_event(idempotency_key text, kind text, payload bytea) returns void
language plpgsql as $$
declare
  key_control constant text := '[\u0001-\u001f\u007f-\u009f]';
  kind_other constant text := '[^A-Za-z0-9._:/@+=~%-]';
begin
  if octet_length(idempotency_key) between 1 and 512 is not true then
    raise exception 'idempotency_key has % bytes, expected 1 to 512', coalesce(octet_length(idempotency_key)::text, 'no')
      using errcode = 'SY003', hint = 'Derive a short key from what caused the event, the same on every attempt.';
  end if;
  if idempotency_key collate "C" ~ key_control then
    raise exception 'idempotency_key holds U+%, expected no control characters',
        upper(lpad(to_hex(ascii(substring(idempotency_key collate "C" from key_control))), 4, '0'))
      using errcode = 'SY003', hint = 'Encode control characters before they become part of a key.';
  end if;
  if octet_length(kind) between 1 and 128 is not true then
    raise exception 'kind has % bytes, expected 1 to 128', coalesce(octet_length(kind)::text, 'no')
      using errcode = 'SY004', hint = 'Say what the payload is, e.g. run.step.finished.';
  end if;
  if kind collate "C" ~ kind_other then
    raise exception 'kind holds "%", expected only ASCII letters and digits and . _ - : / @ + = ~ %%',
        substring(kind collate "C" from kind_other)
      using errcode = 'SY004', hint = 'Percent-encode other characters.';
  end if;
  if octet_length(payload) between 1 and 262144 is not true then
    raise exception 'payload has % bytes, expected 1 to 262144', coalesce(octet_length(payload)::text, 'no')
      using errcode = 'SY005', hint = 'Split the payload, or store it elsewhere and append a reference to it.';
  end if;
end $$;

-- Appends one event and returns its seq. The same key with the same kind and payload again: the first seq, and nothing
-- is written. The same key with anything else: SY001. Takes part in the caller's transaction, and other appends to the
-- stream wait for its end: append late and commit soon, and in one order if several streams are appended to. Many
-- events of one transaction belong into one batch: the versions of the stream's row that single appends leave behind can
-- only be cleared away after the transaction, and every append walks over them.
create function runtime.sync_append(stream_id text, idempotency_key text, kind text, payload bytea) returns bigint
language plpgsql as $$
#variable_conflict use_variable
declare
  asked_at constant timestamptz := clock_timestamp();
  hash bytea;
  head record;
  held record;
begin
  if (octet_length(idempotency_key) between 1 and 512
      and octet_length(kind) between 1 and 128
      and octet_length(payload) between 1 and 262144
      and idempotency_key collate "C" !~ '[\u0001-\u001f\u007f-\u009f]'
      and kind collate "C" !~ '[^A-Za-z0-9._:/@+=~%-]') is not true then
    perform runtime.sync_refuse_event(idempotency_key, kind, payload);
  end if;
  hash := sha256(payload);
  loop
    -- Locks the row and moves the head in one statement. That the key is new is only known after it: a repeat, the
    -- rare case, moves the head back below.
    update runtime.sync_streams s
      set head_seq = s.head_seq + 1,
          head_at = greatest(s.head_at, asked_at),
          head_chain = sha256(
            s.head_chain
            || int8send(s.head_seq + 1)
            || int8send((extract(epoch from greatest(s.head_at, asked_at)) * 1000000)::bigint)
            || hash
            || int2send(octet_length(idempotency_key)::int2)
            || convert_to(idempotency_key, 'UTF8')
            || convert_to(kind, 'UTF8'))
      where s.stream_id = stream_id collate "C"
      -- The flag is only looked up when the stream was clean: a subquery in CASE runs when it is reached.
      returning s.head_seq, s.head_chain, s.head_at,
        case when s.published_seq = s.head_seq - 1 then (select w.sleeping from runtime.sync_bridge_wake w) end as wake
      into head;
    exit when found;
    -- First use. Who comes second waits here for the first, and then finds the row.
    insert into runtime.sync_streams (stream_id, head_chain)
      values (stream_id, runtime.sync_genesis(stream_id))
      on conflict do nothing;
  end loop;

  insert into runtime.sync_stream_events
      (stream_id, seq, committed_at, idempotency_key, kind, payload, payload_hash, chain_hash)
    values (stream_id, head.head_seq, head.head_at, idempotency_key, kind, payload, hash, head.head_chain)
    on conflict on constraint sync_stream_events_key do nothing;
  if found then
    if head.wake then
      perform pg_notify('sync_wake', '');
    end if;
    return head.head_seq;
  end if;

  select e.seq, e.kind, e.payload_hash into strict held
    from runtime.sync_stream_events e
    where e.stream_id = stream_id collate "C" and e.idempotency_key = idempotency_key collate "C";
  if held.kind <> kind or held.payload_hash <> hash then
    perform runtime.sync_refuse_conflict(stream_id, idempotency_key, held.seq, held.kind, held.payload_hash, kind, hash);
  end if;
  update runtime.sync_streams s
    set head_seq = e.seq, head_chain = e.chain_hash, head_at = e.committed_at
    from runtime.sync_stream_events e
    where s.stream_id = stream_id collate "C"
      and e.stream_id = stream_id collate "C" and e.seq = head.head_seq - 1;
  return held.seq;
end $$;

create function runtime.sync_refuse_conflict(
  stream_id text, idempotency_key text, held_seq bigint, held_kind text, held_hash bytea, kind text, hash bytea
) returns void language plpgsql as $$
begin
  raise exception 'idempotency_key "%" of stream "%" stands for seq % (kind "%", payload sha256:%), found kind "%", payload sha256:%',
      idempotency_key, stream_id, coalesce(held_seq::text, 'earlier in the call'),
      held_kind, encode(held_hash, 'hex'), kind, encode(hash, 'hex')
    using errcode = 'SY001', hint = 'Use a new key for a new event; repeat an event only as it was.';
end $$;

-- Appends events in the order given and returns their seqs in that order: as runtime.sync_append for each of them, all
-- with one time, several times faster. Keys repeated inside the call are treated as calls one after the other would be.
create function runtime.sync_append_batch(
  stream_id text, idempotency_keys text[], kinds text[], payloads bytea[]
) returns bigint[]
language plpgsql
-- Plans are made once a session, for any number of events; without these, a plan made while the tables were empty or not
-- yet analysed may read a whole table.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_variable
declare
  most constant int := 10000;
  given int := cardinality(idempotency_keys);
  fresh boolean;
  now_at timestamptz;
  head record;
  bad record;
  hashes bytea[];
  links bytea[];
  link bytea;
  chain bytea;
  at int := 0;
begin
  if (given between 1 and most and array_ndims(idempotency_keys) = 1
      and array_ndims(kinds) = 1 and cardinality(kinds) = given
      and array_ndims(payloads) = 1 and cardinality(payloads) = given) is not true then
    raise exception 'found % keys, % kinds, % payloads, expected three plain arrays of one length, 1 to %',
        coalesce(given::text, 'no'), coalesce(cardinality(kinds)::text, 'no'),
        coalesce(cardinality(payloads)::text, 'no'), most
      using errcode = 'SY006', hint = 'Pass one key, one kind and one payload for each event; split larger batches.';
  end if;

  -- Every check and every payload's hash in one pass.
  select array_agg(sha256(e.payload)),
      coalesce(bool_and(octet_length(e.key) between 1 and 512
        and octet_length(e.kind) between 1 and 128
        and octet_length(e.payload) between 1 and 262144
        and e.key collate "C" !~ '[\u0001-\u001f\u007f-\u009f]'
        and e.kind collate "C" !~ '[^A-Za-z0-9._:/@+=~%-]'), false)
        and count(e.key) = given and count(e.kind) = given and count(e.payload) = given
        and count(distinct e.key collate "C") = given
    into hashes, fresh
    from unnest(idempotency_keys, kinds, payloads) as e(key, kind, payload);
  if not fresh then
    perform runtime.sync_refuse_event(e.key, e.kind, e.payload)
      from unnest(idempotency_keys, kinds, payloads) as e(key, kind, payload);
  end if;

  loop
    select s.head_seq, s.head_chain, s.head_at, s.published_seq into head
      from runtime.sync_streams s where s.stream_id = stream_id collate "C" for no key update;
    exit when found;
    insert into runtime.sync_streams (stream_id, head_chain)
      values (stream_id, runtime.sync_genesis(stream_id))
      on conflict do nothing;
  end loop;

  if not fresh or exists (
      select from runtime.sync_stream_events e
      where e.stream_id = stream_id collate "C" and e.idempotency_key = any (idempotency_keys)) then
    -- The rare case: some are repeats. What is left is the first of every key that is not held yet.
    select e.key, e.kind, e.hash, h.seq, h.kind as held_kind, h.payload_hash as held_hash into bad
      from (
        select g.key, g.kind, g.hash, g.ord,
            first_value(g.kind) over same as first_kind, first_value(g.hash) over same as first_hash
          from unnest(idempotency_keys, kinds, hashes) with ordinality as g(key, kind, hash, ord)
          window same as (partition by g.key collate "C" order by g.ord)
      ) e
      cross join lateral (
        select h.seq, h.kind, h.payload_hash from runtime.sync_stream_events h
          where h.stream_id = stream_id collate "C" and h.idempotency_key = e.key collate "C"
        union all
        select null, e.first_kind, e.first_hash
        limit 1
      ) h
      where h.kind <> e.kind or h.payload_hash <> e.hash
      order by e.ord limit 1;
    if found then
      perform runtime.sync_refuse_conflict(stream_id, bad.key, bad.seq, bad.held_kind, bad.held_hash, bad.kind, bad.hash);
    end if;
    declare
      all_keys constant text[] := idempotency_keys;
    begin
      select array_agg(e.key order by e.ord), array_agg(e.kind order by e.ord),
          array_agg(e.payload order by e.ord), array_agg(e.hash order by e.ord), count(*)
        into idempotency_keys, kinds, payloads, hashes, given
        from (
          select g.*, row_number() over (partition by g.key collate "C" order by g.ord) as nth
            from unnest(idempotency_keys, kinds, payloads, hashes) with ordinality as g(key, kind, payload, hash, ord)
        ) e
        where e.nth = 1 and not exists (
          select from runtime.sync_stream_events h
            where h.stream_id = stream_id collate "C" and h.idempotency_key = e.key collate "C");
      if given > 0 then
        perform runtime.sync_append_batch(stream_id, idempotency_keys, kinds, payloads);
      end if;
      return array(
        select h.seq
          from unnest(all_keys) with ordinality as g(key, ord)
          cross join lateral (
            select h.seq from runtime.sync_stream_events h
              where h.stream_id = stream_id collate "C" and h.idempotency_key = g.key collate "C" offset 0) h
          order by g.ord);
    end;
  end if;

  now_at := greatest(head.head_at, clock_timestamp());
  links := array(
    select int8send(head.head_seq + e.ord) || (int8send((extract(epoch from now_at) * 1000000)::bigint)) || e.hash
        || int2send(octet_length(e.key)::int2) || convert_to(e.key, 'UTF8') || convert_to(e.kind, 'UTF8')
      from unnest(idempotency_keys, kinds, hashes) with ordinality as e(key, kind, hash, ord));
  chain := head.head_chain;
  foreach link in array links loop
    at := at + 1;
    chain := sha256(chain || link);
    links[at] := chain;
  end loop;

  insert into runtime.sync_stream_events
      (stream_id, seq, committed_at, idempotency_key, kind, payload, payload_hash, chain_hash)
    select stream_id, head.head_seq + e.ord, now_at, e.key, e.kind, e.payload, e.hash, e.link
      from unnest(idempotency_keys, kinds, payloads, hashes, links) with ordinality as e(key, kind, payload, hash, link, ord);
  update runtime.sync_streams s
    set head_seq = s.head_seq + given, head_chain = chain, head_at = now_at
    where s.stream_id = stream_id collate "C";
  if head.published_seq = head.head_seq and (select w.sleeping from runtime.sync_bridge_wake w) then
    perform pg_notify('sync_wake', '');
  end if;
  return array(select generate_series(head.head_seq + 1, head.head_seq + given));
end $$;
