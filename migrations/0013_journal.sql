-- The journal: what only SpacetimeDB decides and may not be lost with it, assignments and the names of providers. The bridge
-- has it kept here, and brings it back after SpacetimeDB has lost it. Nothing here is decided by the authority, and nobody else
-- reads it.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

-- One row for each thing, as SpacetimeDB held it last. Of two entries with one key, the one with the higher mark is the newer.
create table runtime.sync_journal (
  key text collate "C" not null,
  mark bigint not null,
  -- The history of the authority in which the row was written.
  epoch text collate "C" not null,
  document text not null,
  kept_at timestamptz not null,
  constraint sync_journal_pkey primary key (key),
  constraint sync_journal_key check (octet_length(key) between 1 and 512),
  constraint sync_journal_mark check (mark > 0),
  constraint sync_journal_document check (octet_length(document) between 1 and 131072)
);

create unique index sync_journal_by_mark on runtime.sync_journal (mark, key);
create index sync_journal_by_epoch on runtime.sync_journal (epoch);

create table runtime.sync_journal_extent (
  singleton boolean primary key default true check (singleton),
  -- The newest mark that was ever kept, also of what is gone.
  newest bigint not null default 0,
  -- How often a bridge began to keep the journal of a SpacetimeDB. What an earlier one still sends comes too late.
  turn bigint not null default 0,
  -- The history of the authority in which that one began. All that it keeps is of this history, also what it keeps after
  -- another one has begun: it ends then, and the next one has SpacetimeDB say everything anew.
  epoch text collate "C" not null default '',
  -- How many rows the journal has, and may have. The owner may set another bound.
  entries bigint not null default 0,
  most bigint not null default 1000000,
  constraint sync_journal_extent_entries check (entries >= 0 and most >= 0)
);

insert into runtime.sync_journal_extent default values;

-- A bridge has a new link to SpacetimeDB, and begins to keep its journal. From here on no page of another turn is kept: it may
-- be of a SpacetimeDB that is gone, whose marks the next one gives again.
create function runtime.sync_begin_journal() returns table (turn bigint, newest bigint, epoch text)
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  update runtime.sync_journal_extent x set turn = x.turn + 1, epoch = (select p.epoch::text from runtime.sync_epoch p)
    returning x.turn, x.newest, x.epoch
$$;

-- Keeps a page of entries, all that there were after the last page up to the mark `upto`. An entry without a document is gone.
-- A repeat changes nothing, and an older entry never replaces a newer one.
create function runtime.sync_keep_journal(turn bigint, keys text[], marks bigint[], documents text[], upto bigint) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  present bigint;
  present_epoch text;
  held bigint;
  bound bigint;
  gone bigint;
  added bigint;
begin
  -- Bridges keep one after another.
  select x.turn, x.epoch, x.entries, x.most into present, present_epoch, held, bound
    from runtime.sync_journal_extent x where x.singleton for update;
  if turn is distinct from present then
    raise exception 'expected a page of turn %, found one of turn %', present, turn
      using errcode = 'SY010', hint = 'Another link keeps the journal by now. Begin again.';
  end if;
  with deleted as (
    delete from runtime.sync_journal j
      using unnest(keys, marks, documents) as e(key, mark, document)
      where e.document = '' and j.key >= e.key collate "C" and j.key <= e.key collate "C" and j.mark < e.mark
      returning 1
  )
  select count(*) into gone from deleted;
  with written as (
    insert into runtime.sync_journal as j (key, mark, epoch, document, kept_at)
      select e.key, e.mark, present_epoch, e.document, clock_timestamp()
        from unnest(keys, marks, documents) as e(key, mark, document)
        where e.document <> ''
      on conflict on constraint sync_journal_pkey do update
        set mark = excluded.mark, epoch = excluded.epoch, document = excluded.document, kept_at = excluded.kept_at
        where j.mark < excluded.mark
      returning (j.xmax = 0) as is_new
  )
  select count(*) filter (where w.is_new) into added from written w;
  if added > 0 and held - gone + added > bound then
    raise exception 'the journal would have % entries, and may have %', held - gone + added, bound
      using errcode = 'SY009', hint = 'Allow more in runtime.sync_journal_extent, as the owner of the tables.';
  end if;
  update runtime.sync_journal_extent x
    set entries = held - gone + added, newest = greatest(x.newest, upto)
    where x.singleton and (gone > 0 or added > 0 or x.newest < upto);
end $$;

-- Removes at most `most` entries that were written in another history of the authority than the one of this turn, and returns
-- how many. SpacetimeDB has said everything anew in this one, so it does not hold them any more.
create function runtime.sync_forget_journal(turn bigint, most int) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  present bigint;
  current_epoch text;
  gone bigint;
begin
  select x.turn, x.epoch into present, current_epoch
    from runtime.sync_journal_extent x where x.singleton for update;
  if turn is distinct from present then
    raise exception 'expected turn %, found turn %', present, turn
      using errcode = 'SY010', hint = 'Another link keeps the journal by now. Begin again.';
  end if;
  with old as (
    (select j.key from runtime.sync_journal j where j.epoch < current_epoch collate "C" order by j.epoch limit most)
    union all
    (select j.key from runtime.sync_journal j where j.epoch > current_epoch collate "C" order by j.epoch limit most)
    limit most
  ), deleted as (
    delete from runtime.sync_journal j using old o where j.key >= o.key and j.key <= o.key returning 1
  )
  select count(*) into gone from deleted;
  update runtime.sync_journal_extent x set entries = x.entries - gone where x.singleton and gone > 0;
  return gone;
end $$;

insert into runtime.sync_duty_rights values
  ('bridge', 'select on runtime.sync_journal, runtime.sync_journal_extent'),
  ('bridge', 'execute on function runtime.sync_begin_journal()'),
  ('bridge', 'execute on function runtime.sync_keep_journal(bigint, text[], bigint[], text[], bigint)'),
  ('bridge', 'execute on function runtime.sync_forget_journal(bigint, int)');

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
        'runtime.sync_begin_journal()',
        'runtime.sync_keep_journal(bigint, text[], bigint[], text[], bigint)',
        'runtime.sync_forget_journal(bigint, int)']::regprocedure[])
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner
        and c.oid = any (array['runtime.sync_journal', 'runtime.sync_journal_extent']::regclass[])
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
