-- Who may have the scopes that not everybody gets who asks for them: `sync.presence.serve`, with which a session says that a
-- node of it serves a stream. The runtime writes this policy, the bridge reads it.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

-- A principal is what it is in sync_access_policy, a scope what proto/src/access/scope.rs says. A token holds a scope of this
-- table if its client asks for it and the table names the user, the organisation or everyone.
create table runtime.sync_scope_policy (
  principal text collate "C" not null,
  scope text collate "C" not null,
  constraint sync_scope_policy_pkey primary key (principal, scope),
  constraint sync_scope_policy_principal check (principal ~ '^(everyone|(user|org):[A-Za-z0-9._:@+=~%-]{1,128})$'),
  constraint sync_scope_policy_scope check (scope in ('sync.presence.serve'))
);

insert into runtime.sync_duty_rights values
  ('runtime', 'select, insert, update, delete on runtime.sync_scope_policy'),
  ('bridge', 'select on runtime.sync_scope_policy');

-- The table belongs to nobody but the owner, and then to whoever writes and reads the other policy.
do $$
declare
  holder text;
  given record;
begin
  for holder in
    select distinct case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner and c.oid = 'runtime.sync_scope_policy'::regclass
  loop
    execute format('revoke all on runtime.sync_scope_policy from %s cascade', holder);
  end loop;
  for given in
    select quote_ident(pg_get_userbyid(a.grantee)) as holder, lower(a.privilege_type) as item
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner and a.grantee <> 0 and c.oid = 'runtime.sync_access_policy'::regclass
        and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
  loop
    execute format('grant %s on runtime.sync_scope_policy to %s', given.item, given.holder);
  end loop;
end $$;
