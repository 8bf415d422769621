-- A relay that will never come back: what waits for it is given up by a person, on record. Without this its policy's share of
-- the outbox stays full until the policy does not name it any more and each entry is dropped. docs/adr/0021-the-mirror.md

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

-- Gives up what waits for a relay, for at most `most` entries, and returns for how many. These entries have one relay less to be
-- at, and no more of them than are left count for the quorum. An entry that enough of these have is sent, one that they cannot
-- have any more is parked, or stays so, and one that has no other relay is dropped.
create function runtime.sync_give_up_relay(relay text, most int, actor text, origin text) returns int
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  given_up text[];
  left_over text[];
  became text;
  -- Who connects, and with which token, is nobody's to read.
  shown constant text := regexp_replace(regexp_replace(relay, '[?#].*$', '?…'), '^([^/]*//)[^/?#]*@', '\1…@');
begin
  -- Whoever changes entries or their deliveries locks the entries first, in the order of their names.
  select coalesce(array_agg(o.event_id), '{}') into given_up from (
    select h.event_id from runtime.sync_outbox h
      where h.event_id in (
        select d.event_id from runtime.sync_outbox_deliveries d
          where d.relay = relay collate "C" and d.status = 'pending' order by d.next_at limit most)
      order by h.event_id for update
  ) o;
  with gone as (
    delete from runtime.sync_outbox_deliveries d
      where d.event_id = any (given_up collate "C") and d.relay = relay collate "C" and d.status = 'pending'
      returning d.event_id
  )
  select coalesce(array_agg(g.event_id), '{}') into left_over from gone g;
  if left_over = '{}' then
    return 0;
  end if;
  with rest as (
    select o.event_id, count(d.event_id) as relays, count(*) filter (where d.status = 'accepted') as accepted,
        count(*) filter (where d.status = 'pending') as pending,
        min(d.failure) filter (where d.status = 'failed') as failure
      from runtime.sync_outbox o left join runtime.sync_outbox_deliveries d on d.event_id = o.event_id
      where o.event_id = any (left_over collate "C") and o.status in ('pending', 'parked') group by o.event_id
  ), judged as (
    select r.event_id, least(o.quorum, r.relays) as quorum, r.failure,
        case when r.relays = 0 then 'dropped'
          when r.accepted >= least(o.quorum, r.relays) then 'sent'
          when o.status = 'parked' or r.accepted + r.pending < least(o.quorum, r.relays) then 'parked'
          else 'pending' end as status
      from rest r join runtime.sync_outbox o on o.event_id = r.event_id
  ), changed as (
    update runtime.sync_outbox o
      set quorum = greatest(j.quorum, 1), status = j.status,
          failure = case j.status when 'dropped' then 'given_up' when 'parked' then coalesce(j.failure, o.failure) end,
          settled_at = case when j.status = o.status then o.settled_at else clock_timestamp() end
      from judged j where o.event_id = j.event_id
      returning o.status
  )
  select string_agg(format('%s %s', s.count, s.status), ', ' order by s.status) into became
    from (select c.status, count(*) as count from changed c group by c.status) s;
  perform runtime.sync_write_act('give_up_relay', 'relay:' || shown, actor, origin,
    concat_ws(': ', cardinality(left_over) || ' entries', became));
  return cardinality(left_over);
end $$;

insert into runtime.sync_duty_rights values
  ('mirror', 'execute on function runtime.sync_give_up_relay(text, int, text, text)');

-- What is new belongs to nobody but the owner, and then to whoever has the duty.
do $$
declare
  of text;
  holder name;
begin
  for of in
    select distinct format('function %s from %s', p.oid::regprocedure,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee <> p.proowner and p.oid = 'runtime.sync_give_up_relay(text, int, text, text)'::regprocedure
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  for holder in
    select distinct pg_get_userbyid(a.grantee)
      from pg_proc p cross join lateral aclexplode(p.proacl) a
      where a.grantee <> p.proowner and a.grantee <> 0
        and p.oid = 'runtime.sync_drop_outbox(text[], text, text)'::regprocedure
  loop
    perform runtime.sync_grant_duty('mirror', holder);
  end loop;
end $$;
