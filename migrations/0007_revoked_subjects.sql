-- Revocation of all sessions of a user or of a device, also of those that have not asked for a token yet. And the rights of
-- each duty become rows, so that a migration that adds one need not repeat the others.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

-- Whose sessions are over if they were signed in before `revoked_at`. Whoever signs in again after it has a new session.
create table runtime.sync_revoked_subjects (
  kind text collate "C" not null,
  name text collate "C" not null,
  revoked_at timestamptz not null,
  primary key (kind, name),
  constraint sync_revoked_subjects_kind check (kind in ('user', 'device')),
  constraint sync_revoked_subjects_name check (octet_length(name) <= 128 and name ~ '^[A-Za-z0-9._:@+=~%-]+$')
);

create index sync_sessions_by_user on runtime.sync_sessions (user_id) where revoked_at is null;
create index sync_sessions_by_device on runtime.sync_sessions (device_id) where revoked_at is null;

-- Revokes all sessions of these users and on these devices, and returns those that it revoked. Who was revoked is never
-- forgotten, because a session that was signed in before may ask for its first token at any later time.
create function runtime.sync_revoke_subjects(users text[], devices text[], reason text, actor text, origin text)
returns text[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  subject record;
  revoked record;
  sessions text[] := '{}';
begin
  if octet_length(reason) > 512 then
    reason := left(reason, 128);
  end if;
  -- A session that another bridge is binding at this moment is bound before or after this, and noticed either way.
  lock table runtime.sync_sessions in share row exclusive mode;
  for subject in
    insert into runtime.sync_revoked_subjects as s (kind, name, revoked_at)
      select distinct w.kind, w.name, clock_timestamp() from (
        select 'user' as kind, u.name from unnest(users) as u(name)
        union all
        select 'device', d.name from unnest(devices) as d(name)) w
      on conflict on constraint sync_revoked_subjects_pkey do update set revoked_at = excluded.revoked_at
      returning s.kind, s.name
  loop
    perform runtime.sync_write_act('revoke_' || subject.kind, subject.kind || ':' || subject.name, actor, origin,
      nullif(reason, ''));
  end loop;
  for revoked in
    update runtime.sync_sessions s set revoked_at = clock_timestamp(), revoked_reason = reason
      where s.revoked_at is null
        and (s.user_id = any (users collate "C") or s.device_id = any (devices collate "C"))
      returning s.session_id, s.user_id, s.device_id
  loop
    sessions := sessions || revoked.session_id;
    perform runtime.sync_write_act('revoke_session', 'session:' || revoked.session_id, actor, origin,
      concat_ws(', ', 'user ' || revoked.user_id, 'device ' || revoked.device_id, nullif(reason, '')));
  end loop;
  return sessions;
end $$;

-- As in migration 6, for a session that was signed in at `signed_in`, in Unix seconds. If its user or its device was revoked
-- since, the session is revoked with its first token.
drop function runtime.sync_bind_session(text, text, text, text);
create function runtime.sync_bind_session(session_id text, user_id text, device_id text, signed_in bigint, origin text)
returns table (bound_user text, bound_device text, revoked boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  of_whom text;
begin
  -- If another bridge inserts the session at this moment, this waits for it, and the next statement sees it.
  insert into runtime.sync_sessions (session_id, user_id, device_id, bound_at)
    values (session_id, user_id, device_id, clock_timestamp()) on conflict do nothing;
  if found then
    perform runtime.sync_write_act('open_session', 'session:' || session_id, 'user:' || user_id, origin,
      'device ' || device_id);
    select s.kind || ' ' || s.name into of_whom from runtime.sync_revoked_subjects s
      where (s.kind, s.name) in (('user', user_id collate "C"), ('device', device_id collate "C"))
        and s.revoked_at >= to_timestamp(signed_in) - interval '1 minute'
      limit 1;
    if found then
      update runtime.sync_sessions s set revoked_at = clock_timestamp(), revoked_reason = of_whom || ' was revoked'
        where s.session_id = session_id collate "C";
      perform runtime.sync_write_act('revoke_session', 'session:' || session_id, 'user:' || user_id, origin,
        of_whom || ' was revoked after this session was signed in');
    end if;
  end if;
  return query select s.user_id, s.device_id, s.revoked_at is not null
    from runtime.sync_sessions s where s.session_id = session_id collate "C";
end $$;

-- What each duty may do. A later migration adds rows, and calls sync_grant_duty for the roles that have the duty.
create table runtime.sync_duty_rights (
  duty text collate "C" not null,
  item text collate "C" not null,
  primary key (duty, item)
);

insert into runtime.sync_duty_rights values
  ('runtime', 'execute on function runtime.sync_append(text, text, text, bytea)'),
  ('runtime', 'execute on function runtime.sync_append_batch(text, text[], text[], bytea[])'),
  ('runtime', 'execute on function runtime.sync_put_snapshot(text, text, bigint, bytea)'),
  ('runtime', 'select, insert, update, delete on runtime.sync_stream_owners, runtime.sync_access_policy'),
  ('bridge', 'select on runtime.sync_streams, runtime.sync_stream_events, runtime.sync_snapshots, runtime.sync_retention'),
  ('bridge', 'select on runtime.sync_epoch, runtime.sync_bridge_wake'),
  ('bridge', 'select on runtime.sync_stream_owners, runtime.sync_access_policy, runtime.sync_sessions'),
  ('bridge', 'update (published_seq, published_at) on runtime.sync_streams'),
  ('bridge', 'update (beat) on runtime.sync_epoch'),
  ('bridge', 'update (sleeping) on runtime.sync_bridge_wake'),
  ('bridge', 'update (delivered_at) on runtime.sync_sessions'),
  ('bridge', 'execute on function runtime.sync_class(text)'),
  ('bridge', 'execute on function runtime.sync_take_lead()'),
  ('bridge', 'execute on function runtime.sync_begin_epoch(text, text)'),
  ('bridge', 'execute on function runtime.sync_bind_session(text, text, text, bigint, text)'),
  ('bridge', 'execute on function runtime.sync_revoke_sessions(text[], text, text, text)'),
  ('bridge', 'execute on function runtime.sync_revoke_subjects(text[], text[], text, text, text)'),
  ('bridge', 'execute on function runtime.sync_record_act(text, text, text, text, text)'),
  ('purge', 'execute on function runtime.sync_purge(text, int)'),
  ('purge', 'execute on function runtime.sync_purge_audit(int)'),
  ('purge', 'execute on function runtime.sync_forget_sessions(int, text, int)'),
  ('reading', 'select on runtime.sync_streams, runtime.sync_stream_events, runtime.sync_snapshots, runtime.sync_retention'),
  ('reading', 'select on runtime.sync_epoch'),
  ('reading', 'execute on function runtime.sync_class(text)'),
  ('audit', 'select on runtime.sync_audit, runtime.sync_audit_retention, runtime.sync_session_retention');

create or replace function runtime.sync_grant_duty(duty text, role name) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  rights text[] := array(select r.item from runtime.sync_duty_rights r where r.duty = sync_grant_duty.duty collate "C");
  item text;
begin
  if rights = '{}' then
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
      where a.grantee <> p.proowner and p.oid = any (array[
        'runtime.sync_revoke_subjects(text[], text[], text, text, text)',
        'runtime.sync_bind_session(text, text, text, bigint, text)']::regprocedure[])
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner
        and c.oid = any (array['runtime.sync_revoked_subjects', 'runtime.sync_duty_rights']::regclass[])
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  for holder in
    select distinct pg_get_userbyid(a.grantee)
      from pg_proc p cross join lateral aclexplode(p.proacl) a
      where a.grantee <> p.proowner and a.grantee <> 0 and p.oid = 'runtime.sync_take_lead()'::regprocedure
  loop
    perform runtime.sync_grant_duty('bridge', holder);
  end loop;
end $$;
