-- Keys of purged events are kept for a while, so that a late repeat of one is known as what it is.
--
-- An append asks for them where something was purged, and nowhere else. A stream that keeps all its events pays nothing.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
  -- While a transaction that appends is open, this cannot go on, and appends that come meanwhile wait behind it.
  perform set_config('lock_timeout', '5s', true);
end $$;

-- How long the keys of purged events are kept, counted from the purge. Null: for ever. A change counts for what is purged later.
alter table runtime.sync_retention
  add column keys_age interval default '30 days',
  add constraint sync_retention_keys check (keys_age between interval '1 second' and interval '36500 days');

-- What an append needs to tell a repeat of a purged event from another event. The first event under a key counts, as it does in
-- the log, so a key is here or there and never in both.
create table runtime.sync_kept_keys (
  stream_id text collate "C" not null,
  idempotency_key text collate "C" not null,
  seq bigint not null,
  kind text collate "C" not null,
  payload_hash bytea not null,
  -- It may be forgotten then. Null: never.
  kept_until timestamptz,
  constraint sync_kept_keys_pkey primary key (stream_id, idempotency_key)
);

create index sync_kept_keys_until on runtime.sync_kept_keys (kept_until) where kept_until is not null;

-- Removes a stream's oldest events that its class keeps no longer, at most `most` of them, and returns how many. Never
-- one that is not published. Their keys stay as long as the class says. A stream that a writer holds is left for the next
-- time.
create or replace function runtime.sync_purge(stream_id text, most int) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
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
  with gone as (
    delete from runtime.sync_stream_events e
      where e.stream_id = stream_id collate "C" and e.seq >= stream.oldest_seq and e.seq <= last
      returning e.idempotency_key, e.seq, e.kind, e.payload_hash
  )
  insert into runtime.sync_kept_keys (stream_id, idempotency_key, seq, kind, payload_hash, kept_until)
    select stream_id, g.idempotency_key, g.seq, g.kind, g.payload_hash, clock_timestamp() + class.keys_age from gone g
    on conflict on constraint sync_kept_keys_pkey do nothing;
  perform set_config('spacetime_sync.purging', '', true);
  update runtime.sync_streams s set oldest_seq = last + 1, floor_chain = chain where s.stream_id = stream_id collate "C";
  return last + 1 - stream.oldest_seq;
end $$;

-- Forgets keys whose time is over, the oldest first, at most `most` of them, and returns how many. One that an append looks at is
-- left for the next time.
create function runtime.sync_forget_keys(most int) returns bigint language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  -- A function that Postgres calls anew for each row is no condition of an index.
  due constant timestamptz := clock_timestamp();
  gone bigint;
begin
  delete from runtime.sync_kept_keys k
    where k.ctid = any (array(
      select o.ctid from runtime.sync_kept_keys o
        where o.kept_until < due order by o.kept_until limit most for update skip locked));
  get diagnostics gone = row_count;
  return gone;
end $$;

-- Appends one event and returns its seq. The same key with the same kind and payload again: the first seq, and nothing
-- is written. The same key with anything else: SY001. Takes part in the caller's transaction, and other appends to the
-- stream wait for its end: append late and commit soon, and in one order if several streams are appended to. Many
-- events of one transaction belong into one batch: the versions of the stream's row that single appends leave behind can
-- only be cleared away after the transaction, and every append walks over them.
create or replace function runtime.sync_append(
  stream_id text, idempotency_key text, kind text, payload bytea
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_variable
declare
  asked_at constant timestamptz := clock_timestamp();
  hash bytea;
  head record;
  held record;
  -- Whether the key is none of a purged event.
  is_new boolean := false;
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
    -- rare case, moves the head back below. It cannot go back where the events before it are purged. So there, the kept keys
    -- are looked at first, once nobody else can purge.
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
      where s.stream_id = stream_id collate "C" and (s.oldest_seq = 1 or is_new)
      returning s.head_seq, s.head_chain, s.head_at, s.published_seq = s.head_seq - 1 as was_clean
      into head;
    exit when found;
    perform from runtime.sync_streams s where s.stream_id = stream_id collate "C" for no key update;
    if found then
      select k.seq, k.kind, k.payload_hash into held
        from runtime.sync_kept_keys k
        where k.stream_id = stream_id collate "C"
          and k.idempotency_key >= idempotency_key collate "C" and k.idempotency_key <= idempotency_key collate "C"
        order by k.idempotency_key limit 1;
      if found then
        if held.kind <> kind or held.payload_hash <> hash then
          perform runtime.sync_refuse_conflict(stream_id, idempotency_key, held.seq, held.kind, held.payload_hash, kind, hash);
        end if;
        return held.seq;
      end if;
      is_new := true;
    else
      -- First use. Who comes second waits here for the first, and then finds the row.
      insert into runtime.sync_streams (stream_id, head_chain)
        values (stream_id, runtime.sync_genesis(stream_id))
        on conflict do nothing;
    end if;
  end loop;

  insert into runtime.sync_stream_events
      (stream_id, seq, committed_at, idempotency_key, kind, payload, payload_hash, chain_hash)
    values (stream_id, head.head_seq, head.head_at, idempotency_key, kind, payload, hash, head.head_chain)
    on conflict on constraint sync_stream_events_key do nothing;
  if found then
    -- A statement of its own: as a part of the update, the lookup would be set up even where it is never run.
    if head.was_clean then
      if (select w.sleeping from runtime.sync_bridge_wake w where w.singleton) then
        perform pg_notify('sync_wake', '');
      end if;
    end if;
    return head.head_seq;
  end if;

  select e.seq, e.kind, e.payload_hash into strict held
    from runtime.sync_stream_events e
    where e.stream_id = stream_id collate "C"
      and e.idempotency_key >= idempotency_key collate "C" and e.idempotency_key <= idempotency_key collate "C"
    order by e.idempotency_key limit 1;
  if held.kind <> kind or held.payload_hash <> hash then
    perform runtime.sync_refuse_conflict(stream_id, idempotency_key, held.seq, held.kind, held.payload_hash, kind, hash);
  end if;
  update runtime.sync_streams s
    set (head_seq, head_chain, head_at) = (
      select e.seq, e.chain_hash, e.committed_at from runtime.sync_stream_events e
        where e.stream_id = stream_id collate "C" and e.seq >= head.head_seq - 1 and e.seq <= head.head_seq - 1
        order by e.seq limit 1)
    where s.stream_id = stream_id collate "C";
  return held.seq;
end $$;

-- Appends events in the order given and returns their seqs in that order: as runtime.sync_append for each of them, all
-- with one time, several times faster. Keys repeated inside the call are treated as calls one after the other would be.
create or replace function runtime.sync_append_batch(
  stream_id text, idempotency_keys text[], kinds text[], payloads bytea[]
) returns bigint[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- One plan a session, for any number of events.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_variable
declare
  most constant int := 10000;
  given int := cardinality(idempotency_keys);
  -- What the chain hash of each event covers beside seq and time. It begins with the payload's hash.
  tails bytea[];
  fresh boolean;
  least_key text;
  greatest_key text;
  head record;
  few constant int := given / 4;
  held_between text[];
  hashes bytea[];
  bad record;
  now_at timestamptz;
  time_sent bytea;
  chain bytea;
  links bytea[];
begin
  if (given between 1 and most and array_ndims(idempotency_keys) = 1
      and array_ndims(kinds) = 1 and cardinality(kinds) = given
      and array_ndims(payloads) = 1 and cardinality(payloads) = given) is not true then
    raise exception 'found % keys, % kinds, % payloads, expected three plain arrays of one length, 1 to %',
        coalesce(given::text, 'no'), coalesce(cardinality(kinds)::text, 'no'),
        coalesce(cardinality(payloads)::text, 'no'), most
      using errcode = 'SY006', hint = 'Pass one key, one kind and one payload for each event; split larger batches.';
  end if;
  if given = 1 then
    -- Arrays may begin at any number.
    return array[runtime.sync_append(stream_id, idempotency_keys[array_lower(idempotency_keys, 1)],
      kinds[array_lower(kinds, 1)], payloads[array_lower(payloads, 1)])];
  end if;

  -- Arrays are unnested in the select list: in FROM, Postgres copies the payloads into a work table first.
  tails := array(
    select case
        when octet_length(e.key) between 1 and 512
          and octet_length(e.kind) between 1 and 128
          and octet_length(e.payload) between 1 and 262144
        then sha256(e.payload) || int2send(octet_length(e.key)::int2) || convert_to(e.key || e.kind, 'UTF8')
      end
      from (select unnest(idempotency_keys) as key, unnest(kinds) as kind, unnest(payloads) as payload) e);
  -- One search through all texts costs a fraction of one search through each.
  if array_position(tails, null) is not null
      or array_to_string(idempotency_keys, '') collate "C" ~ '[\u0001-\u001f\u007f-\u009f]'
      or array_to_string(kinds, '') collate "C" ~ '[^A-Za-z0-9._:/@+=~%-]' then
    perform runtime.sync_refuse_event(e.key, e.kind, e.payload)
      from unnest(idempotency_keys, kinds, payloads) as e(key, kind, payload);
  end if;
  select count(distinct e.key collate "C") = given, min(e.key collate "C"), max(e.key collate "C")
    into fresh, least_key, greatest_key
    from (select unnest(idempotency_keys) as key) e;

  loop
    select s.head_seq, s.head_chain, s.head_at, s.published_seq, s.oldest_seq into head
      from runtime.sync_streams s where s.stream_id = stream_id collate "C" for no key update;
    exit when found;
    insert into runtime.sync_streams (stream_id, head_chain)
      values (stream_id, runtime.sync_genesis(stream_id))
      on conflict do nothing;
  end loop;

  if fresh then
    -- Keys that are derived from a number that grows have few held keys between them, or none. Where events were purged, any
    -- number of dead index entries may lie between them, so each key is looked up alone.
    if head.oldest_seq = 1 then
      held_between := array(
        select h.idempotency_key from runtime.sync_stream_events h
          where h.stream_id = stream_id collate "C"
            and h.idempotency_key >= least_key collate "C" and h.idempotency_key <= greatest_key collate "C"
          order by h.idempotency_key limit few + 1);
    end if;
    if cardinality(held_between) between 1 and few then
      select count(distinct g.key collate "C") = given + cardinality(held_between) into fresh
        from (select unnest(idempotency_keys || held_between) as key) g;
    elsif (cardinality(held_between) = 0) is not true then
      fresh := not exists (
        select from (select unnest(idempotency_keys) as key) g
          cross join lateral (
            select from runtime.sync_stream_events h
              where h.stream_id = stream_id collate "C"
                and h.idempotency_key >= g.key collate "C" and h.idempotency_key <= g.key collate "C"
              order by h.idempotency_key limit 1) h);
    end if;
    if fresh and head.oldest_seq > 1 then
      fresh := not exists (
        select from (select unnest(idempotency_keys) as key) g
          cross join lateral (
            select from runtime.sync_kept_keys k
              where k.stream_id = stream_id collate "C"
                and k.idempotency_key >= g.key collate "C" and k.idempotency_key <= g.key collate "C"
              order by k.idempotency_key limit 1) k);
    end if;
  end if;
  if not fresh then
    -- runtime.sync_forget_keys leaves these until the caller's transaction ends, so whatever follows finds the same.
    if head.oldest_seq > 1 then
      perform from runtime.sync_kept_keys k
        where k.stream_id = stream_id collate "C" and k.idempotency_key = any (idempotency_keys) for key share;
    end if;
    hashes := array(select substr(t.tail, 1, 32) from (select unnest(tails) as tail) t);
    -- The rare case: some are repeats. What is left is the first of every key that is not held yet, in the log or of it.
    select e.key, e.kind, e.hash, h.seq, h.kind as held_kind, h.payload_hash as held_hash into bad
      from (
        select g.key, g.kind, g.hash, g.ord,
            first_value(g.kind) over same as first_kind, first_value(g.hash) over same as first_hash
          from unnest(idempotency_keys, kinds, hashes) with ordinality as g(key, kind, hash, ord)
          window same as (partition by g.key collate "C" order by g.ord)
      ) e
      cross join lateral (
        (select h.seq, h.kind, h.payload_hash from runtime.sync_stream_events h
          where h.stream_id = stream_id collate "C"
            and h.idempotency_key >= e.key collate "C" and h.idempotency_key <= e.key collate "C"
          order by h.idempotency_key limit 1)
        union all
        (select k.seq, k.kind, k.payload_hash from runtime.sync_kept_keys k
          where k.stream_id = stream_id collate "C"
            and k.idempotency_key >= e.key collate "C" and k.idempotency_key <= e.key collate "C"
          order by k.idempotency_key limit 1)
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
      select array_agg(e.key order by e.ord), array_agg(e.kind order by e.ord), array_agg(e.payload order by e.ord)
        into idempotency_keys, kinds, payloads
        from (
          select g.*, row_number() over (partition by g.key collate "C" order by g.ord) as nth
            from unnest(idempotency_keys, kinds, payloads) with ordinality as g(key, kind, payload, ord)
        ) e
        left join lateral (
          (select h.seq from runtime.sync_stream_events h
            where h.stream_id = stream_id collate "C"
              and h.idempotency_key >= e.key collate "C" and h.idempotency_key <= e.key collate "C"
            order by h.idempotency_key limit 1)
          union all
          (select k.seq from runtime.sync_kept_keys k
            where k.stream_id = stream_id collate "C"
              and k.idempotency_key >= e.key collate "C" and k.idempotency_key <= e.key collate "C"
            order by k.idempotency_key limit 1)
          limit 1) h on true
        where e.nth = 1 and h.seq is null;
      if idempotency_keys is not null then
        perform runtime.sync_append_batch(stream_id, idempotency_keys, kinds, payloads);
      end if;
      return array(
        select h.seq
          from unnest(all_keys) with ordinality as g(key, ord)
          cross join lateral (
            (select h.seq from runtime.sync_stream_events h
              where h.stream_id = stream_id collate "C"
                and h.idempotency_key >= g.key collate "C" and h.idempotency_key <= g.key collate "C"
              order by h.idempotency_key limit 1)
            union all
            (select k.seq from runtime.sync_kept_keys k
              where k.stream_id = stream_id collate "C"
                and k.idempotency_key >= g.key collate "C" and k.idempotency_key <= g.key collate "C"
              order by k.idempotency_key limit 1)
            limit 1) h
          order by g.ord);
    end;
  end if;

  now_at := greatest(head.head_at, clock_timestamp());
  time_sent := int8send((extract(epoch from now_at) * 1000000)::bigint);
  chain := head.head_chain;
  for nth in 1..given loop
    chain := sha256(chain || int8send(head.head_seq + nth) || time_sent || tails[nth]);
    links[nth] := chain;
  end loop;

  insert into runtime.sync_stream_events
      (stream_id, seq, committed_at, idempotency_key, kind, payload, payload_hash, chain_hash)
    select stream_id, generate_series(head.head_seq + 1, head.head_seq + given), now_at, unnest(idempotency_keys),
        unnest(kinds), unnest(payloads), substr(unnest(tails), 1, 32), unnest(links);
  update runtime.sync_streams s
    set head_seq = s.head_seq + given, head_chain = chain, head_at = now_at
    where s.stream_id = stream_id collate "C";
  if head.published_seq = head.head_seq then
    if (select w.sleeping from runtime.sync_bridge_wake w where w.singleton) then
      perform pg_notify('sync_wake', '');
    end if;
  end if;
  return array(select generate_series(head.head_seq + 1, head.head_seq + given));
end $$;

insert into runtime.sync_duty_rights values ('purge', 'execute on function runtime.sync_forget_keys(int)');

-- What is new belongs to nobody but the owner, and then to whoever purges. Nobody else needs to read keys.
do $$
declare
  of text;
  said record;
begin
  for of in
    select distinct format('function %s from %s', p.oid::regprocedure,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee <> p.proowner and p.oid = 'runtime.sync_forget_keys(int)'::regprocedure
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner and c.oid = 'runtime.sync_kept_keys'::regclass
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  for of in
    select distinct quote_ident(pg_get_userbyid(a.grantee))
      from pg_proc p cross join lateral aclexplode(p.proacl) a
      where a.grantee <> p.proowner and a.grantee <> 0 and p.oid = 'runtime.sync_purge(text, int)'::regprocedure
  loop
    execute format('grant execute on function runtime.sync_forget_keys(int) to %s', of);
  end loop;
  for said in
    select * from (values
      ('column runtime.sync_retention.keys_age', 'how long the keys of purged events are kept; null: for ever'),
      ('table runtime.sync_kept_keys', 'the keys of purged events, so that a late repeat of one is known'),
      ('column runtime.sync_kept_keys.stream_id', 'the stream'),
      ('column runtime.sync_kept_keys.idempotency_key', 'the key'),
      ('column runtime.sync_kept_keys.seq', 'the seq of the event'),
      ('column runtime.sync_kept_keys.kind', 'its kind'),
      ('column runtime.sync_kept_keys.payload_hash', 'the hash of its payload'),
      ('column runtime.sync_kept_keys.kept_until', 'it may be forgotten then; null: never'),
      ('function runtime.sync_forget_keys(int)', 'forgets keys of purged events whose time is over')) as w(what, comment)
  loop
    execute format('comment on %s is %L', said.what, said.comment);
  end loop;
end $$;

reset role;
