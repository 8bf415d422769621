-- The audit log: what operators and the issuer did, who, when and from where. Rows are only added, by functions.
--
-- What the database itself does for them, such as a revocation, is recorded in the same transaction by the function that
-- does it, so it cannot be done without. What they do elsewhere, such as publishing the module, is what they say it is.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

create table runtime.sync_audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  act text collate "C" not null,
  -- What it was done to, e.g. session:s1 or stream:runtime.run.42.events. Null: to the whole lane.
  subject text collate "C",
  -- Who did it and from where, as the process says that acted for them. Null: it did not say.
  actor text collate "C" not null,
  origin text collate "C",
  detail text,
  -- How that process was connected, as Postgres knows it. Null: over a socket of the machine itself.
  login name not null,
  address inet,
  constraint sync_audit_act check (act ~ '^[a-z][a-z0-9_]{0,63}$'),
  constraint sync_audit_subject check (octet_length(subject) between 1 and 1200),
  constraint sync_audit_actor check (octet_length(actor) between 1 and 600),
  constraint sync_audit_origin check (octet_length(origin) between 1 and 600),
  constraint sync_audit_detail check (octet_length(detail) between 1 and 4000)
);

create index sync_audit_by_time on runtime.sync_audit (at);

-- How long acts are kept; null: for good. Only the owner may change it.
create table runtime.sync_audit_retention (
  singleton boolean primary key default true check (singleton),
  keep interval default '400 days',
  constraint sync_audit_retention_keep check (keep between interval '1 day' and interval '36500 days')
);

insert into runtime.sync_audit_retention default values;

create function runtime.sync_refuse_audit_change() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'DELETE' and current_setting('spacetime_sync.purging', true) = 'yes'
      and current_user = (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = tg_relid) then
    return null;
  end if;
  raise exception 'expected only inserts into %.%, found %', tg_table_schema, tg_table_name, lower(tg_op)
    using errcode = 'SY007', hint = 'Acts leave by runtime.sync_audit_retention alone.';
end $$;

create trigger sync_audit_append_only
  before update or delete or truncate on runtime.sync_audit
  for each statement execute function runtime.sync_refuse_audit_change();

-- Writes an act. The time, the login and the address are what Postgres knows, and nobody states them. A text that is too
-- long is cut, and what would control the reader's screen is replaced: neither is a reason not to record the act, nor to
-- refuse it. Only the owner may call this, and so the functions that record what they do.
create function runtime.sync_write_act(act text, subject text, actor text, origin text, detail text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into runtime.sync_audit (act, subject, actor, origin, detail, login, address)
    select $1, nullif(left(t.clean[1], 300), ''), coalesce(nullif(left(t.clean[2], 150), ''), 'unknown'),
        nullif(left(t.clean[3], 150), ''), nullif(left(t.clean[4], 1000), ''), session_user, inet_client_addr()
      from (
        -- Control characters, what ends a line, and what changes the direction of writing.
        select array_agg(regexp_replace(g.given collate "C",
            '[\u0001-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]', chr(65533), 'g') order by g.place) as clean
          from unnest(array[$2, $3, $4, $5]) with ordinality as g(given, place)) t
$$;

-- Records an act that is done outside of the database, as whoever is about to do it says. What the database does, the
-- function that does it records, and nobody else can.
create function runtime.sync_record_act(act text, subject text, actor text, origin text, detail text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if (act in ('rewind_stream', 'publish_module', 'grant_stream', 'revoke_stream')) is not true then
    raise exception 'the act "%" is not one that a caller records', act
      using errcode = 'insufficient_privilege',
        hint = 'Record rewind_stream, publish_module, grant_stream or revoke_stream; what does another act records it.';
  end if;
  perform runtime.sync_write_act(act, subject, actor, origin, detail);
end $$;

-- Removes at most `most` of the oldest acts that are kept no longer, and returns how many.
create function runtime.sync_purge_audit(most int) returns bigint language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  gone bigint;
begin
  perform set_config('spacetime_sync.purging', 'yes', true);
  delete from runtime.sync_audit a
    using (
      select o.id from runtime.sync_audit o
        where o.at < clock_timestamp() - (select r.keep from runtime.sync_audit_retention r)
        order by o.at limit most) old
    where a.id = old.id;
  get diagnostics gone = row_count;
  perform set_config('spacetime_sync.purging', '', true);
  return gone;
end $$;

-- As in migration 5, and records it.
drop function runtime.sync_begin_epoch();
create function runtime.sync_begin_epoch(actor text, origin text) returns table (epoch text, beat bigint)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  select runtime.sync_write_act('begin_epoch', null, $1, $2, (select 'after epoch ' || e.epoch from runtime.sync_epoch e));
  update runtime.sync_epoch set epoch = gen_random_uuid(), beat = 0 returning epoch::text, beat
$$;

-- As in migration 5, and records each session whose first revocation this is. A reason that is too long is cut, so that it
-- stops no revocation.
drop function runtime.sync_revoke_sessions(text[], text);
create function runtime.sync_revoke_sessions(session_ids text[], reason text, actor text, origin text) returns text[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  revoked record;
begin
  if octet_length(reason) > 512 then
    reason := left(reason, 128);
  end if;
  for revoked in
    insert into runtime.sync_sessions as s (session_id, revoked_at, revoked_reason)
      select w.session_id, clock_timestamp(), reason
        from (select distinct g.session_id from unnest(session_ids) as g(session_id)) w
      on conflict on constraint sync_sessions_pkey do update
        set revoked_at = excluded.revoked_at, revoked_reason = excluded.revoked_reason
        where s.revoked_at is null
      returning s.session_id, s.user_id
  loop
    perform runtime.sync_write_act('revoke_session', 'session:' || revoked.session_id, actor, origin,
      concat_ws(', ', 'user ' || revoked.user_id, nullif(reason, '')));
  end loop;
  return array(
    select s.session_id from unnest(session_ids) as w(session_id)
      cross join lateral (
        select h.session_id from runtime.sync_sessions h
          where h.session_id >= w.session_id collate "C" and h.session_id <= w.session_id collate "C"
            and h.bound_at is null) s
      group by s.session_id order by s.session_id);
end $$;

-- Binds a session to the user and the device of its first token, unless it is bound or revoked already, and records that.
-- Returns what the session is bound to. Of a session's later tokens nothing is recorded here: they are renewals of the same
-- right, every few minutes for every client, and each would be a write where there is none.
create function runtime.sync_bind_session(session_id text, user_id text, device_id text, origin text)
returns table (bound_user text, bound_device text, revoked boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  -- If another bridge inserts the session at this moment, this waits for it, and the next statement sees it.
  insert into runtime.sync_sessions (session_id, user_id, device_id, bound_at)
    values (session_id, user_id, device_id, clock_timestamp()) on conflict do nothing;
  if found then
    perform runtime.sync_write_act('open_session', 'session:' || session_id, 'user:' || user_id, origin,
      'device ' || device_id);
  end if;
  return query select s.user_id, s.device_id, s.revoked_at is not null
    from runtime.sync_sessions s where s.session_id = session_id collate "C";
end $$;

-- As in migration 5, with what is new here, and one duty more:
--
--   audit     reads what is on record: who did what, on which device and from where
create or replace function runtime.sync_grant_duty(duty text, role name) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  rights text[];
  item text;
begin
  rights := case duty
    when 'runtime' then array[
      'execute on function runtime.sync_append(text, text, text, bytea)',
      'execute on function runtime.sync_append_batch(text, text[], text[], bytea[])',
      'execute on function runtime.sync_put_snapshot(text, text, bigint, bytea)',
      'select, insert, update, delete on runtime.sync_stream_owners, runtime.sync_access_policy']
    when 'bridge' then array[
      'select on runtime.sync_streams, runtime.sync_stream_events, runtime.sync_snapshots, runtime.sync_retention',
      'select on runtime.sync_epoch, runtime.sync_bridge_wake',
      'select on runtime.sync_stream_owners, runtime.sync_access_policy, runtime.sync_sessions',
      'update (published_seq, published_at) on runtime.sync_streams',
      'update (beat) on runtime.sync_epoch',
      'update (sleeping) on runtime.sync_bridge_wake',
      'update (delivered_at) on runtime.sync_sessions',
      'execute on function runtime.sync_class(text)',
      'execute on function runtime.sync_take_lead()',
      'execute on function runtime.sync_begin_epoch(text, text)',
      'execute on function runtime.sync_bind_session(text, text, text, text)',
      'execute on function runtime.sync_revoke_sessions(text[], text, text, text)',
      'execute on function runtime.sync_record_act(text, text, text, text, text)']
    when 'purge' then array[
      'execute on function runtime.sync_purge(text, int)',
      'execute on function runtime.sync_purge_audit(int)',
      'execute on function runtime.sync_forget_sessions(int, text, int)']
    when 'reading' then array[
      'select on runtime.sync_streams, runtime.sync_stream_events, runtime.sync_snapshots, runtime.sync_retention',
      'select on runtime.sync_epoch',
      'execute on function runtime.sync_class(text)']
    when 'audit' then array[
      'select on runtime.sync_audit, runtime.sync_audit_retention, runtime.sync_session_retention']
  end;
  if rights is null then
    raise exception 'there is no duty "%", expected runtime, bridge, purge, reading or audit', duty
      using errcode = 'invalid_parameter_value';
  end if;
  rights := rights || 'usage on schema runtime'::text;
  -- Who connects with the bridge's code checks which migrations the database has.
  if duty in ('bridge', 'reading') and to_regclass('spacetime_sync._sqlx_migrations') is not null then
    rights := rights || array['usage on schema spacetime_sync', 'select on spacetime_sync._sqlx_migrations'];
  end if;
  foreach item in array rights loop
    execute format('grant %s to %I', item, role);
  end loop;
end $$;

-- Makes the group roles of a prefix, as far as they do not exist, and gives each its duty. May be repeated. Roles belong to
-- the whole server: what is granted to one here can be used by its members from every database, so lanes that do not trust
-- one another need a prefix each. Who may not create roles gets a warning, and gives the duties to roles of an
-- administrator, with sync_grant_duty.
create function runtime.sync_make_roles(prefix text) returns void language plpgsql
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
  foreach duty in array array['runtime', 'bridge', 'purge', 'reading', 'audit'] loop
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

-- What is new belongs to nobody but the owner, and then to whoever has the duty.
do $$
declare
  of text;
  held record;
begin
  for of in
    select distinct format('function %s from %s', p.oid::regprocedure,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee <> p.proowner and p.oid = any (array['runtime.sync_refuse_audit_change()',
        'runtime.sync_write_act(text, text, text, text, text)',
        'runtime.sync_record_act(text, text, text, text, text)', 'runtime.sync_purge_audit(int)',
        'runtime.sync_make_roles(text)', 'runtime.sync_begin_epoch(text, text)',
        'runtime.sync_revoke_sessions(text[], text, text, text)',
        'runtime.sync_bind_session(text, text, text, text)']::regprocedure[])
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner
        and c.oid = any (array['runtime.sync_audit', 'runtime.sync_audit_id_seq',
          'runtime.sync_audit_retention']::regclass[])
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  for held in
    select pg_get_userbyid(a.grantee) as role, bool_or(p.proname = 'sync_take_lead') as bridge,
        bool_or(p.proname = 'sync_purge') as purge
      from pg_proc p cross join lateral aclexplode(p.proacl) a
      where a.grantee <> p.proowner and a.grantee <> 0
        and p.oid = any (array['runtime.sync_take_lead()', 'runtime.sync_purge(text, int)']::regprocedure[])
      group by a.grantee
  loop
    if held.bridge then
      -- The function that binds a session takes its place.
      execute format('revoke insert on runtime.sync_sessions from %I', held.role);
      perform runtime.sync_grant_duty('bridge', held.role);
    end if;
    if held.purge then
      execute format('grant execute on function runtime.sync_purge_audit(int) to %I', held.role);
    end if;
  end loop;
end $$;

reset role;
select runtime.sync_make_roles(
  coalesce(nullif(current_setting('spacetime_sync.role_prefix', true), ''), 'spacetime_sync'));
