-- Batches hash right on Postgres 16 and later.
--
-- There, an aggregate with DISTINCT makes the planner sort the rows for all aggregates of its query. The batch function collected
-- the payloads' hashes beside count(distinct key). So with keys out of order it gave events the hashes of other payloads, and the
-- bridge halted the stream as broken_log. docs/recovery.md says how to find such streams.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
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

  -- By itself: from Postgres 16 on, the DISTINCT below may sort the rows for every aggregate beside it.
  hashes := array(select sha256(e.payload) from unnest(payloads) as e(payload));
  select coalesce(bool_and(octet_length(e.key) between 1 and 512
        and octet_length(e.kind) between 1 and 128
        and octet_length(e.payload) between 1 and 262144
        and e.key collate "C" !~ '[\u0001-\u001f\u007f-\u009f]'
        and e.kind collate "C" !~ '[^A-Za-z0-9._:/@+=~%-]'), false)
        and count(e.key) = given and count(e.kind) = given and count(e.payload) = given
        and count(distinct e.key collate "C") = given
    into fresh
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
      select from unnest(idempotency_keys) as g(key)
        cross join lateral (
          select from runtime.sync_stream_events h
            where h.stream_id = stream_id collate "C"
              and h.idempotency_key >= g.key collate "C" and h.idempotency_key <= g.key collate "C"
            order by h.idempotency_key limit 1) h) then
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
      select array_agg(e.key order by e.ord), array_agg(e.kind order by e.ord),
          array_agg(e.payload order by e.ord), array_agg(e.hash order by e.ord), count(*)
        into idempotency_keys, kinds, payloads, hashes, given
        from (
          select g.*, row_number() over (partition by g.key collate "C" order by g.ord) as nth
            from unnest(idempotency_keys, kinds, payloads, hashes) with ordinality as g(key, kind, payload, hash, ord)
        ) e
        left join lateral (
          select h.seq from runtime.sync_stream_events h
            where h.stream_id = stream_id collate "C"
              and h.idempotency_key >= e.key collate "C" and h.idempotency_key <= e.key collate "C"
            order by h.idempotency_key limit 1) h on true
        where e.nth = 1 and h.seq is null;
      if given > 0 then
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
  if head.published_seq = head.head_seq then
    if (select w.sleeping from runtime.sync_bridge_wake w where w.singleton) then
      perform pg_notify('sync_wake', '');
    end if;
  end if;
  return array(select generate_series(head.head_seq + 1, head.head_seq + given));
end $$;
