-- Who may do what, enforced by Postgres: one role a duty, and functions that work with the owner's rights.
--
-- The owner is the role that owns the tables, which is whoever migrated first. No process of the lane needs to run as it.
-- A duty is what a role needs for its work; a login role gets one by membership in a group role, which migration 6 makes, or
-- by itself:
--   grant spacetime_sync_runtime to my_login;             select runtime.sync_grant_duty('runtime', 'my_login');
--
--   runtime   appends events, puts snapshots, says who may read what
--   bridge    carries events; what `spacetime-sync run` and the operator's commands need, but for purges
--   purge     removes what the policy no longer keeps, and forgets sessions that are over
--   reading   reads the log; enough for a mirror or a report
--
-- Nobody but the owner can insert, change or delete an event, move a head, or shorten a log. The functions below run as the
-- owner (SECURITY DEFINER), so their search_path is pinned, and everything outside of pg_catalog is named with its schema.
--
-- A new function or table of a later migration belongs to nobody but the owner, until that migration extends
-- sync_grant_duty and calls it for whoever has the duty.

-- What is here already must be the lane's, because from here on it works with the owner's rights.
do $$
declare
  tables constant regclass[] := array['runtime.sync_streams', 'runtime.sync_stream_events', 'runtime.sync_bridge_wake',
    'runtime.sync_stream_owners', 'runtime.sync_access_policy', 'runtime.sync_sessions', 'runtime.sync_retention',
    'runtime.sync_snapshots', 'runtime.sync_epoch']::regclass[] || to_regclass('spacetime_sync._sqlx_migrations');
  functions constant regprocedure[] := array['runtime.sync_append(text, text, text, bytea)',
    'runtime.sync_append_batch(text, text[], text[], bytea[])', 'runtime.sync_genesis(text)',
    'runtime.sync_refuse_change()', 'runtime.sync_refuse_event(text, text, bytea)',
    'runtime.sync_refuse_conflict(text, text, bigint, text, bytea, text, bytea)', 'runtime.sync_class(text)',
    'runtime.sync_purge(text, int)', 'runtime.sync_put_snapshot(text, text, bigint, bytea)']::regprocedure[];
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
  schema_owner constant name := (select pg_get_userbyid(nspowner) from pg_namespace where oid = 'runtime'::regnamespace);
  found text;
  remedy text;
  foreign_piece text;
  held record;
begin
  -- Whoever owns a schema can drop what is in it, and the functions need their owner's right to use it.
  if schema_owner <> owner then
    raise exception 'the schema runtime belongs to %, and the tables in it to %; give them one owner: %', schema_owner, owner,
      format('alter schema runtime owner to %I;', owner);
  end if;

  -- A trigger would run with the rights of the functions below. This lock keeps another from being added meanwhile, and no
  -- writer waits for it.
  execute format('lock table %s in share update exclusive mode', array_to_string(tables, ', '));
  select string_agg(format('%I on %s', g.tgname, g.tgrelid::regclass), ', ' order by g.tgrelid::regclass::text, g.tgname),
      string_agg(format('drop trigger %I on %s;', g.tgname, g.tgrelid::regclass), ' '
        order by g.tgrelid::regclass::text, g.tgname)
    into found, remedy
    from pg_trigger g
    where g.tgrelid = any (tables) and not g.tgisinternal
      and (g.tgrelid, g.tgname, g.tgfoid) is distinct from ('runtime.sync_stream_events'::regclass::oid,
        'sync_stream_events_append_only'::name, 'runtime.sync_refuse_change()'::regprocedure::oid);
  if found is not null then
    raise exception 'the lane''s tables have triggers that are not the lane''s, and that would run with their owner''s rights: '
      '%; look into them, and remove them: %', found, remedy;
  end if;
  -- A function of the same name with other arguments may be the one that a caller reaches.
  select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text),
      string_agg(format('drop routine %s;', p.oid::regprocedure), ' ' order by p.oid::regprocedure::text)
    into found, remedy
    from pg_proc p
    where p.pronamespace = 'runtime'::regnamespace and p.oid <> all (functions)
      and p.proname in ('sync_append', 'sync_append_batch', 'sync_genesis', 'sync_refuse_change', 'sync_refuse_event',
        'sync_refuse_conflict', 'sync_class', 'sync_purge', 'sync_put_snapshot', 'sync_take_lead', 'sync_begin_epoch',
        'sync_revoke_sessions', 'sync_forget_sessions', 'sync_bind_session', 'sync_grant_duty', 'sync_make_roles',
        'sync_write_act', 'sync_record_act', 'sync_purge_audit', 'sync_refuse_audit_change');
  if found is not null then
    raise exception 'the schema runtime has functions under names of the lane''s that are not the lane''s: %; '
      'look into them, and remove them: %', found, remedy;
  end if;

  if (select r.rolsuper from pg_roles r where r.rolname = owner) then
    raise warning 'the lane''s tables belong to %, a superuser, and so do the functions that work with the owner''s rights; '
      'docs/security.md says who should own them', owner;
  end if;

  -- One owner for all, even if the migrations so far were applied by different roles, and this one by a superuser.
  for foreign_piece in
    select format('table %s', c.oid::regclass) from pg_class c
      where c.oid = any (tables) and pg_get_userbyid(c.relowner) <> owner
    union all
    select format('function %s', p.oid::regprocedure) from pg_proc p
      where p.oid = any (functions) and pg_get_userbyid(p.proowner) <> owner
    union all
    select 'schema spacetime_sync' from pg_namespace n
      where n.nspname = 'spacetime_sync' and pg_get_userbyid(n.nspowner) <> owner
  loop
    execute format('alter %s owner to %I', foreign_piece, owner);
  end loop;
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;

  -- Whoever can create here can put functions in the way of the lane's.
  for held in
    select distinct n.nspname as schema,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as role
      from pg_namespace n cross join lateral aclexplode(n.nspacl) a
      where n.nspname in ('runtime', 'spacetime_sync') and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner
  loop
    execute format('revoke create on schema %I from %s cascade', held.schema, held.role);
    raise warning '% can no longer create in schema %: only the owner may, and what is not the lane''s needs another schema',
      held.role, held.schema;
  end loop;
end $$;

alter function runtime.sync_append(text, text, text, bytea)
  security definer set search_path = pg_catalog, pg_temp;
alter function runtime.sync_append_batch(text, text[], text[], bytea[])
  security definer set search_path = pg_catalog, pg_temp;
alter function runtime.sync_put_snapshot(text, text, bigint, bytea)
  security definer set search_path = pg_catalog, pg_temp;
alter function runtime.sync_purge(text, int)
  security definer set search_path = pg_catalog, pg_temp;

-- Events leave by retention alone, oldest first: by sync_purge, which works as the owner. Anybody can set the setting, and
-- it means nothing from anybody but the owner, whom it keeps from deleting by mistake.
create or replace function runtime.sync_refuse_change() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'DELETE' and current_setting('spacetime_sync.purging', true) = 'yes'
      and current_user = (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = tg_relid) then
    return null;
  end if;
  raise exception 'expected only inserts into %.%, found %', tg_table_schema, tg_table_name, lower(tg_op)
    using errcode = 'SY007', hint = 'Append a new event that corrects the old one.';
end $$;

-- The lead is a lock of this view, which has no rows that matter, in a mode that only sync_take_lead can hold for longer
-- than a moment: an advisory lock could be taken by anybody, and so stop every bridge. Weaker modes can be held by anybody,
-- because Postgres locks before it checks rights, so the lead is compatible with those. It is no table, because vacuum would
-- wait for its lock, in the end until the server runs out of transaction ids; and no lock of a row, because that takes a
-- transaction id, and as long as one is in use vacuum removes nothing that is younger. No later migration may change the
-- view: it would wait for the bridge.
create view runtime.sync_lead as select true as lead;

-- Takes the lead, if nobody has it, until the caller's transaction ends, and so at the latest with its connection. It waits
-- for a moment, because a command that is refused, such as COMMENT, may hold the lock that long.
create function runtime.sync_take_lead() returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
  lock table runtime.sync_lead in share update exclusive mode;
  return true;
exception when lock_not_available then
  return false;
end $$;

-- Begins a new epoch: what SpacetimeDB was told of the last one no longer counts.
create function runtime.sync_begin_epoch() returns table (epoch text, beat bigint) language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  update runtime.sync_epoch set epoch = gen_random_uuid(), beat = 0 returning epoch::text, beat
$$;

-- Revokes sessions, also those that never had a token, and returns the latter. The first revocation of a session counts,
-- and nobody but the owner can take one back.
create function runtime.sync_revoke_sessions(session_ids text[], reason text) returns text[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into runtime.sync_sessions as s (session_id, revoked_at, revoked_reason)
    select w.session_id, clock_timestamp(), reason
      from (select distinct g.session_id from unnest(session_ids) as g(session_id)) w
    on conflict on constraint sync_sessions_pkey do update
      set revoked_at = excluded.revoked_at, revoked_reason = excluded.revoked_reason
      where s.revoked_at is null;
  return array(
    select s.session_id from unnest(session_ids) as w(session_id)
      cross join lateral (
        select h.session_id from runtime.sync_sessions h
          where h.session_id >= w.session_id collate "C" and h.session_id <= w.session_id collate "C"
            and h.bound_at is null) s
      group by s.session_id order by s.session_id);
end $$;

-- How long a session is remembered at least, after its first token and its revocation; null: for good. A revocation that is
-- forgotten is taken back. So this must be longer than any session lasts, and only the owner may change it.
create table runtime.sync_session_retention (
  singleton boolean primary key default true check (singleton),
  keep interval default '400 days',
  constraint sync_session_retention_keep check (keep between interval '1 day' and interval '36500 days')
);

insert into runtime.sync_session_retention default values;

-- Looks at the next `most` sessions after `after`, and forgets those whose first token and whose revocation are more than
-- `days` old, and older than sync_session_retention says. A session stays while SpacetimeDB has not taken its revocation.
-- Returns the last session that it looked at, null at the end, and how many it forgot.
create function runtime.sync_forget_sessions(days int, after text, most int) returns table (last text, gone bigint)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  with part as (
    select p.session_id from runtime.sync_sessions p where p.session_id > $2 order by p.session_id limit $3
  ), gone as (
    delete from runtime.sync_sessions s using part p
    where s.session_id >= p.session_id and s.session_id <= p.session_id
      -- Without a row, and with null, nothing is forgotten.
      and greatest(s.bound_at, s.revoked_at) < (
        select now() - greatest(make_interval(days => $1), r.keep)
          from runtime.sync_session_retention r where r.keep is not null)
      and (s.revoked_at is null or s.delivered_at is not null)
    returning s.session_id
  )
  select (select max(p.session_id) from part p), (select count(*) from gone)
$$;

-- Gives a role everything that a duty needs, and nothing else. For the owner of the tables; may be repeated. What only one
-- role should do, such as to publish, is the operator's to decide: any number of roles may have a duty.
create function runtime.sync_grant_duty(duty text, role name) returns void language plpgsql
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
      'insert (session_id, user_id, device_id, bound_at) on runtime.sync_sessions',
      'update (delivered_at) on runtime.sync_sessions',
      'execute on function runtime.sync_class(text)',
      'execute on function runtime.sync_take_lead()',
      'execute on function runtime.sync_begin_epoch()',
      'execute on function runtime.sync_revoke_sessions(text[], text)']
    when 'purge' then array[
      'execute on function runtime.sync_purge(text, int)',
      'execute on function runtime.sync_forget_sessions(int, text, int)']
    when 'reading' then array[
      'select on runtime.sync_streams, runtime.sync_stream_events, runtime.sync_snapshots, runtime.sync_retention',
      'select on runtime.sync_epoch',
      'execute on function runtime.sync_class(text)']
  end;
  if rights is null then
    raise exception 'there is no duty "%", expected runtime, bridge, purge or reading', duty
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

-- Rights that roles have from before. Whoever could append can append, whoever did the bridge's work has its duty, and
-- nobody can do anything that they could not do before. Other rights to write are gone. What the owner can do does not
-- change, nor who may read, nor who may say who owns a stream and who may read it.
do $$
declare
  guarded constant regclass[] := array['runtime.sync_streams', 'runtime.sync_stream_events', 'runtime.sync_snapshots',
    'runtime.sync_sessions', 'runtime.sync_epoch', 'runtime.sync_bridge_wake', 'runtime.sync_retention']::regclass[]
    || to_regclass('spacetime_sync._sqlx_migrations');
  -- The runtime writes these.
  policy constant regclass[] := array['runtime.sync_stream_owners', 'runtime.sync_access_policy']::regclass[];
  functions constant regprocedure[] := array['runtime.sync_append(text, text, text, bytea)',
    'runtime.sync_append_batch(text, text[], text[], bytea[])', 'runtime.sync_genesis(text)',
    'runtime.sync_refuse_change()', 'runtime.sync_refuse_event(text, text, bytea)',
    'runtime.sync_refuse_conflict(text, text, bigint, text, bytea, text, bytea)', 'runtime.sync_class(text)',
    'runtime.sync_purge(text, int)', 'runtime.sync_put_snapshot(text, text, bigint, bytea)', 'runtime.sync_take_lead()',
    'runtime.sync_begin_epoch()', 'runtime.sync_revoke_sessions(text[], text)',
    'runtime.sync_forget_sessions(int, text, int)', 'runtime.sync_grant_duty(text, name)']::regprocedure[];
  of text;
  held record;
begin
  -- Postgres lets everybody run a new function, and default privileges may give away more.
  for of in
    select distinct format('function %s from %s', p.oid::regprocedure,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where p.oid = any (functions) and a.grantee <> p.proowner
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where c.oid = any (array['runtime.sync_lead', 'runtime.sync_session_retention']::regclass[])
        and a.grantee <> c.relowner
  loop
    execute format('revoke all on %s cascade', of);
  end loop;

  for held in
    select case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end as role,
        case when g.grantee <> 0 then pg_get_userbyid(g.grantee) end as name,
        bool_or(g.rel = 'runtime.sync_stream_events'::regclass and g.privilege = 'INSERT')
          and bool_or(g.rel = 'runtime.sync_streams'::regclass and g.privilege = 'UPDATE') as appends,
        bool_or(g.rel in ('runtime.sync_epoch'::regclass, 'runtime.sync_bridge_wake'::regclass)
          and g.privilege = 'UPDATE')
          and bool_or(g.rel = 'runtime.sync_streams'::regclass and g.privilege = 'UPDATE') as bridge,
        bool_or(g.rel = 'runtime.sync_stream_events'::regclass and g.privilege = 'DELETE') as purges,
        bool_or(g.rel = 'runtime.sync_sessions'::regclass and g.privilege = 'DELETE') as forgets,
        bool_or(g.rel = 'runtime.sync_retention'::regclass and g.privilege = 'SELECT') as classes,
        bool_or(g.rel = 'runtime.sync_snapshots'::regclass and g.privilege = 'INSERT') as snapshots,
        string_agg(distinct format('%s on %s', lower(g.privilege), g.rel), ', ') filter (
          where g.privilege in ('TRUNCATE', 'REFERENCES', 'TRIGGER')
            or g.privilege <> 'SELECT' and g.rel = any (guarded)) as taken
      from (
        select c.oid::regclass as rel, c.relowner, a.grantee, a.privilege_type as privilege
          from pg_class c cross join lateral aclexplode(c.relacl) a where c.oid = any (guarded || policy)
        union all
        select c.oid::regclass, c.relowner, a.grantee, a.privilege_type
          from pg_class c join pg_attribute t on t.attrelid = c.oid cross join lateral aclexplode(t.attacl) a
          where c.oid = any (guarded || policy)
      ) g
      where g.grantee <> g.relowner
      group by g.grantee
  loop
    execute format('revoke insert, update, delete, truncate, references, trigger on %s from %s cascade',
      array_to_string(guarded, ', '), held.role);
    execute format('revoke truncate, references, trigger on %s from %s cascade', array_to_string(policy, ', '), held.role);
    if held.name is null then
      if held.taken is not null then
        raise warning 'everybody (PUBLIC) had rights to write that are gone: %; whoever relied on them needs a duty '
          '(docs/security.md)', held.taken;
      end if;
      continue;
    end if;
    if held.appends then
      execute format('grant usage on schema runtime to %I', held.name);
      execute format('grant execute on function runtime.sync_append(text, text, text, bytea), '
        'runtime.sync_append_batch(text, text[], text[], bytea[]) to %I', held.name);
    end if;
    if held.snapshots then
      execute format('grant execute on function runtime.sync_put_snapshot(text, text, bigint, bytea) to %I', held.name);
    end if;
    if held.classes then
      execute format('grant execute on function runtime.sync_class(text) to %I', held.name);
    end if;
    if held.bridge then
      perform runtime.sync_grant_duty('bridge', held.name);
    end if;
    if held.purges then
      execute format('grant execute on function runtime.sync_purge(text, int) to %I', held.name);
    end if;
    if held.forgets then
      execute format('grant execute on function runtime.sync_forget_sessions(int, text, int) to %I', held.name);
    end if;
    if held.taken is not null then
      raise warning 'role % had rights to write that are gone: %; in their place it may % (docs/security.md)', held.name,
        held.taken, coalesce(nullif(concat_ws(', ', case when held.appends then 'append' end,
            case when held.snapshots then 'put snapshots' end, case when held.bridge then 'do the bridge''s work' end,
            case when held.purges then 'purge events' end, case when held.forgets then 'forget sessions' end), ''),
            'write nothing');
    end if;
  end loop;
end $$;

reset role;
