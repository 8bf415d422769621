-- The policy of scopes may name `sync.mirror`, too: who has it sees the outbox, puts events into it, and says what became of
-- them.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
  -- While a transaction that writes the policy is open, this cannot go on, and tokens wait behind it.
  perform set_config('lock_timeout', '5s', true);
end $$;

alter table runtime.sync_scope_policy
  drop constraint sync_scope_policy_scope,
  add constraint sync_scope_policy_scope check (scope in ('sync.presence.serve', 'sync.provider', 'sync.mirror'));
