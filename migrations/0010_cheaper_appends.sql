-- Appends cost less.
--
-- Postgres reads the text of a check anew for each statement. The five checks of a stream's row cost every append 10 of its 60
-- microseconds, so the four that appends cannot break become a trigger, which an append does not fire.
--
-- A batch copied its payloads into a work table twice, and looked every key up alone. Now it does neither where its keys lie
-- close together, as keys do that are derived from a number that grows. docs/benchmarks.md has the figures.

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

-- An append changes the head alone. What else a row says is for the owner's functions to change.
create function runtime.sync_refuse_positions() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if (octet_length(new.stream_id) between 1 and 255
      and octet_length(new.head_chain) = 32
      and new.oldest_seq between 1 and new.head_seq + 1
      and (new.floor_chain is null) = (new.oldest_seq = 1)
      and coalesce(octet_length(new.floor_chain), 32) = 32) is not true then
    raise exception 'stream "%" cannot have head %, oldest seq %, a head chain of % bytes and a floor chain of % bytes',
        new.stream_id, new.head_seq, new.oldest_seq, octet_length(new.head_chain),
        coalesce(octet_length(new.floor_chain)::text, 'no')
      using errcode = 'check_violation',
        hint = 'The oldest seq is at most one past the head; the floor chain is there exactly if the oldest seq is not 1.';
  end if;
  return new;
end $$;

revoke all on function runtime.sync_refuse_positions() from public;

create trigger sync_streams_positions
  before insert or update of stream_id, oldest_seq, floor_chain on runtime.sync_streams
  for each row execute function runtime.sync_refuse_positions();

alter table runtime.sync_streams
  drop constraint sync_streams_id_length,
  drop constraint sync_streams_chain_length,
  drop constraint sync_streams_oldest,
  drop constraint sync_streams_floor;

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
  end if;
  if not fresh then
    hashes := array(select substr(t.tail, 1, 32) from (select unnest(tails) as tail) t);
    -- The rare case: some are repeats. What is left is the first of every key that is not held yet.
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
          select h.seq from runtime.sync_stream_events h
            where h.stream_id = stream_id collate "C"
              and h.idempotency_key >= e.key collate "C" and h.idempotency_key <= e.key collate "C"
            order by h.idempotency_key limit 1) h on true
        where e.nth = 1 and h.seq is null;
      if idempotency_keys is not null then
        perform runtime.sync_append_batch(stream_id, idempotency_keys, kinds, payloads);
      end if;
      return array(
        select h.seq
          from unnest(all_keys) with ordinality as g(key, ord)
          cross join lateral (
            select h.seq from runtime.sync_stream_events h
              where h.stream_id = stream_id collate "C"
                and h.idempotency_key >= g.key collate "C" and h.idempotency_key <= g.key collate "C"
              order by h.idempotency_key limit 1) h
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
