-- The mirror: what relays of Nostr hear of what the authority has committed. The policy says which events, and to which relays;
-- the outbox is the truth of what is to be published. docs/adr/0021-the-mirror.md has the reasons.
--
--   mirror    reads positions, kinds and hashes of events, never a payload; keeps cursors and the outbox
--
-- The mirror takes no lock on the tables of the lane but those of a read: nobody who appends or publishes waits for it.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

-- What is mirrored. The runtime writes it, the mirror reads it.
--   events        a pointer to each event of the streams that the pattern covers: NIP-78, kind 30078
--   capabilities  an advertisement for each provider that SpacetimeDB shows: NIP-89, kind 31990
--   enqueued      what others with the scope sync.mirror have put into SpacetimeDB's outbox under this schema and kind
create table runtime.sync_mirror_policy (
  policy_id text collate "C" primary key,
  source text collate "C" not null,
  -- A stream, or all streams with a prefix: runtime.run.*
  pattern text collate "C",
  -- The kinds of events; none: all.
  kinds text[] collate "C" not null default '{}',
  schema text collate "C" not null,
  nostr_kind int not null,
  relays text[] collate "C" not null,
  -- How many relays must have it before it counts as sent; null: all.
  quorum int,
  enabled boolean not null default true,
  constraint sync_mirror_policy_id check (policy_id ~ '^[A-Za-z0-9._:@+=~%-]{1,64}$'),
  constraint sync_mirror_policy_pattern check (pattern ~ '^[A-Za-z0-9._:/@+=~%-]{1,254}[*]?$'),
  constraint sync_mirror_policy_kinds check (cardinality(kinds) <= 64),
  constraint sync_mirror_policy_schema check (schema ~ '^[a-z0-9._-]{1,128}$'),
  constraint sync_mirror_policy_relays check (cardinality(relays) between 1 and 16
    and octet_length(array_to_string(relays, '')) <= 4096 and array_to_string(relays, ' ') ~ '^(wss?://[!-~]+ ?)+$'),
  constraint sync_mirror_policy_quorum check (quorum between 1 and cardinality(relays)),
  constraint sync_mirror_policy_source check (case source
    when 'events' then pattern is not null and nostr_kind = 30078 and schema = 'openagents.bridge.receipt_ptr.v1'
    when 'capabilities' then pattern is null and kinds = '{}' and nostr_kind = 31990
      and schema = 'openagents.bridge.provider_ad.v1'
    -- Only what can be replaced by its name: to publish it again changes nothing. And nothing that would replace what the
    -- mirror itself has said.
    when 'enqueued' then pattern is null and kinds = '{}' and nostr_kind between 30000 and 39999
      and nostr_kind not in (30078, 31990)
      and schema not in ('openagents.bridge.receipt_ptr.v1', 'openagents.bridge.provider_ad.v1')
    else false end)
);

-- Whose capabilities come in from relays, and what their providers are called here: the prefix, and then what the key calls it.
create table runtime.sync_mirror_trusted_keys (
  nostr_key text collate "C" primary key,
  provider_prefix text collate "C" not null unique,
  enabled boolean not null default true,
  constraint sync_mirror_trusted_keys_key check (nostr_key ~ '^[0-9a-f]{64}$'),
  constraint sync_mirror_trusted_keys_prefix check (provider_prefix ~ '^[A-Za-z0-9._:@+=~%-]{1,63}[.:]$')
);

-- Up to where each policy has read each stream.
create table runtime.sync_mirror_cursors (
  policy_id text collate "C" not null,
  stream_id text collate "C" not null,
  seq bigint not null,
  primary key (policy_id, stream_id),
  constraint sync_mirror_cursors_seq check (seq >= 0)
) with (fillfactor = 50);

-- What is to be published, is published, or is parked until a person decides. All that the event of Nostr is made of, so that
-- it has the same id whenever it is made.
create table runtime.sync_outbox (
  event_id text collate "C" primary key,
  policy_id text collate "C" not null,
  source text collate "C" not null,
  nostr_kind int not null,
  schema text collate "C" not null,
  d_tag text collate "C" not null,
  content text not null,
  created_at_s bigint not null,
  expires_at_s bigint,
  -- The key that signs it, and the id that it has with that key.
  author text collate "C" not null,
  published_as text collate "C" not null,
  quorum int not null,
  status text collate "C" not null default 'pending',
  failure text collate "C",
  -- What SpacetimeDB's outbox is known to say of it.
  reflected text collate "C" not null default 'nothing',
  enqueued_at timestamptz not null default clock_timestamp(),
  settled_at timestamptz,
  constraint sync_outbox_event_id check (event_id ~ '^[A-Za-z0-9._:@+=~%-]{1,128}$'),
  constraint sync_outbox_source check (source in ('events', 'capabilities', 'enqueued')),
  constraint sync_outbox_d_tag check (octet_length(d_tag) between 1 and 512),
  constraint sync_outbox_content check (octet_length(content) <= 65536),
  constraint sync_outbox_status check (status in ('pending', 'sent', 'parked', 'dropped')),
  constraint sync_outbox_reflected check (reflected in ('nothing', 'pending', 'dropped', 'sent')),
  constraint sync_outbox_settled check ((status = 'pending') = (settled_at is null))
) with (fillfactor = 70);

create index sync_outbox_pending on runtime.sync_outbox (enqueued_at) where status = 'pending';
create index sync_outbox_shares on runtime.sync_outbox (policy_id) where status = 'pending';
create index sync_outbox_over on runtime.sync_outbox (settled_at) where status in ('sent', 'dropped');
create index sync_outbox_parked on runtime.sync_outbox (settled_at) where status = 'parked';
create index sync_outbox_ads on runtime.sync_outbox (d_tag)
  where status in ('pending', 'parked') and source = 'capabilities';
create index sync_outbox_sent_ads on runtime.sync_outbox (d_tag, expires_at_s)
  where status = 'sent' and source = 'capabilities';
create index sync_outbox_reflect_waiting on runtime.sync_outbox ((reflected = 'nothing'), enqueued_at)
  where status = 'pending' and reflected = 'nothing';
create index sync_outbox_reflect_over on runtime.sync_outbox ((reflected = 'nothing'), enqueued_at)
  where status = 'sent' and reflected <> 'sent' or status in ('parked', 'dropped') and reflected in ('nothing', 'pending');

-- One row for each relay that is to have an entry.
create table runtime.sync_outbox_deliveries (
  event_id text collate "C" not null references runtime.sync_outbox on delete cascade,
  relay text collate "C" not null,
  status text collate "C" not null default 'pending',
  attempts int not null default 0,
  next_at timestamptz not null default clock_timestamp(),
  failure text collate "C",
  detail text,
  primary key (event_id, relay),
  constraint sync_outbox_deliveries_status check (status in ('pending', 'accepted', 'failed')),
  constraint sync_outbox_deliveries_detail check (octet_length(detail) <= 1024)
) with (fillfactor = 70);

create index sync_outbox_deliveries_due on runtime.sync_outbox_deliveries (relay, next_at) where status = 'pending';

-- The mirror's lead, as sync_lead is the bridge's (migration 5).
create view runtime.sync_mirror_lead as select true as lead;

create function runtime.sync_take_mirror_lead() returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
  lock table runtime.sync_mirror_lead in share update exclusive mode;
  return true;
exception when lock_not_available then
  return false;
end $$;

-- Has parked entries published again, from their first attempt. Returns those that were parked. An entry that was never to be
-- published, because no policy names it, stays parked.
create function runtime.sync_retry_outbox(event_ids text[], actor text, origin text) returns text[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  retried text;
  all_retried text[] := '{}';
begin
  for retried in
    update runtime.sync_outbox o set status = 'pending', settled_at = null, failure = null
      from (
        select h.event_id from runtime.sync_outbox h
          where h.event_id = any (event_ids collate "C") and h.status = 'parked'
            and exists (select from runtime.sync_outbox_deliveries d where d.event_id = h.event_id)
          order by h.event_id for update
      ) was
      where o.event_id = was.event_id
      returning o.event_id
  loop
    update runtime.sync_outbox_deliveries d
      set status = 'pending', attempts = 0, next_at = clock_timestamp(), failure = null, detail = null
      where d.event_id = retried collate "C" and d.status = 'failed';
    all_retried := all_retried || retried;
    perform runtime.sync_write_act('retry_outbox', 'outbox:' || retried, actor, origin, null);
  end loop;
  return all_retried;
end $$;

-- Gives entries up for good, and returns those that were not published. What relays have of them stays there. They are
-- remembered as long as what is published, so that nobody enqueues them again meanwhile.
create function runtime.sync_drop_outbox(event_ids text[], actor text, origin text) returns text[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  dropped record;
  all_dropped text[] := '{}';
begin
  for dropped in
    update runtime.sync_outbox o set status = 'dropped', settled_at = clock_timestamp()
      from (
        select h.event_id, h.status from runtime.sync_outbox h
          where h.event_id = any (event_ids collate "C") and h.status in ('pending', 'parked')
          order by h.event_id for update
      ) was
      where o.event_id = was.event_id
      returning o.event_id, was.status, o.failure
  loop
    delete from runtime.sync_outbox_deliveries d where d.event_id = dropped.event_id;
    all_dropped := all_dropped || dropped.event_id;
    perform runtime.sync_write_act('drop_outbox', 'outbox:' || dropped.event_id, actor, origin,
      concat_ws(', ', dropped.status, dropped.failure));
  end loop;
  return all_dropped;
end $$;

insert into runtime.sync_duty_rights values
  ('runtime', 'select, insert, update, delete on runtime.sync_mirror_policy, runtime.sync_mirror_trusted_keys'),
  ('mirror', 'select (stream_id, head_seq, oldest_seq) on runtime.sync_streams'),
  ('mirror', 'select (stream_id, seq, committed_at, kind, payload_hash) on runtime.sync_stream_events'),
  ('mirror', 'select on runtime.sync_mirror_policy, runtime.sync_mirror_trusted_keys'),
  ('mirror', 'select, insert, update, delete on runtime.sync_mirror_cursors'),
  ('mirror', 'select, insert, update, delete on runtime.sync_outbox, runtime.sync_outbox_deliveries'),
  ('mirror', 'execute on function runtime.sync_take_mirror_lead()'),
  ('mirror', 'execute on function runtime.sync_retry_outbox(text[], text, text)'),
  ('mirror', 'execute on function runtime.sync_drop_outbox(text[], text, text)');

-- As in migration 7, with the duty of the mirror.
create or replace function runtime.sync_grant_duty(duty text, role name) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  rights text[] := array(select r.item from runtime.sync_duty_rights r where r.duty = sync_grant_duty.duty collate "C");
  item text;
begin
  if rights = '{}' then
    raise exception 'there is no duty "%", expected runtime, bridge, purge, reading, audit or mirror', duty
      using errcode = 'invalid_parameter_value';
  end if;
  rights := rights || 'usage on schema runtime'::text;
  -- Who connects with the bridge's code checks which migrations the database has.
  if duty in ('bridge', 'reading', 'mirror') and to_regclass('spacetime_sync._sqlx_migrations') is not null then
    rights := rights || array['usage on schema spacetime_sync', 'select on spacetime_sync._sqlx_migrations'];
  end if;
  foreach item in array rights loop
    execute format('grant %s to %I', item, role);
  end loop;
end $$;

-- As in migration 6, with the role of the mirror.
create or replace function runtime.sync_make_roles(prefix text) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  duty text;
  role name;
begin
  if prefix !~ '^[a-z_][a-z0-9_]{0,40}$' then
    raise exception 'the prefix "%" of the roles is malformed, expected a-z, 0-9 and _, at most 41', prefix
      using errcode = 'invalid_parameter_value';
  end if;
  foreach duty in array array['runtime', 'bridge', 'purge', 'reading', 'audit', 'mirror'] loop
    role := prefix || '_' || duty;
    if not exists (select from pg_roles r where r.rolname = role) then
      begin
        execute format('create role %I nologin', role);
      exception
        -- A migration of another database came first.
        when duplicate_object or unique_violation then null;
        when insufficient_privilege then
          raise warning 'role % does not exist, and % may not create it; docs/security.md says what to do', role, current_user
            using hint = format('Have it created (create role %I nologin), and then, as the owner: '
              'select runtime.sync_grant_duty(%L, %L)', role, duty, role);
          continue;
      end;
    end if;
    perform runtime.sync_grant_duty(duty, role);
  end loop;
end $$;

-- What is new belongs to nobody but the owner. Who writes the policy of scopes writes the policy of the mirror, too.
do $$
declare
  of text;
  holder text;
begin
  for of in
    select distinct format('function %s from %s', p.oid::regprocedure,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee <> p.proowner and p.oid = any (array['runtime.sync_take_mirror_lead()',
        'runtime.sync_retry_outbox(text[], text, text)', 'runtime.sync_drop_outbox(text[], text, text)']::regprocedure[])
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner
        and c.oid = any (array['runtime.sync_mirror_policy', 'runtime.sync_mirror_trusted_keys',
          'runtime.sync_mirror_cursors', 'runtime.sync_outbox', 'runtime.sync_outbox_deliveries',
          'runtime.sync_mirror_lead']::regclass[])
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  for holder in
    select distinct quote_ident(pg_get_userbyid(a.grantee))
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner and a.grantee <> 0 and c.oid = 'runtime.sync_scope_policy'::regclass
        and a.privilege_type = 'INSERT'
  loop
    execute format('grant select, insert, update, delete on runtime.sync_mirror_policy, runtime.sync_mirror_trusted_keys to %s',
      holder);
  end loop;
end $$;

reset role;

-- The group role of the mirror, where those of the other duties are.
do $$
declare
  prefix constant text := coalesce(nullif(current_setting('spacetime_sync.role_prefix', true), ''), 'spacetime_sync');
  role constant name := prefix || '_mirror';
begin
  if not exists (select from pg_roles r where r.rolname = prefix || '_bridge') then
    return;
  end if;
  if not exists (select from pg_roles r where r.rolname = role) then
    begin
      execute format('create role %I nologin', role);
    exception
      -- A migration of another database came first.
      when duplicate_object or unique_violation then null;
      when insufficient_privilege then
        raise warning 'role % does not exist, and % may not create it; docs/security.md says what to do', role, current_user
          using hint = format('Have it created (create role %I nologin), and then, as the owner: '
            'select runtime.sync_grant_duty(%L, %L)', role, 'mirror', role);
        return;
    end;
  end if;
  perform runtime.sync_grant_duty('mirror', role);
end $$;
