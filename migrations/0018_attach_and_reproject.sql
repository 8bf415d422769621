-- How a table is attached, and how its documents are compared with its rows: those that are there when it is attached, and all
-- of them again whenever somebody asks, beside the table's writers (`spacetime-sync reproject`).

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

-- How far a table's documents are compared with its rows, so that what was stopped goes on where it was.
create table runtime.sync_reprojections (
  projection text collate "C" primary key references runtime.sync_projections on delete cascade,
  -- First every row is looked at, and then whether every document has a row.
  phase text collate "C" not null default 'rows',
  -- The key of the last row, or the id of the last document.
  after jsonb,
  looked_at bigint not null default 0,
  applied bigint not null default 0,
  started_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  constraint sync_reprojections_phase check (phase in ('rows', 'documents', 'done'))
);

-- Who compares or attaches a table in this transaction. The functions below that have the owner's rights go by it, because a function
-- cannot see who has called it: a row's default says who has written it, and nobody may write another name.
create unlogged table runtime.sync_callers (
  transaction_id xid8 not null default pg_current_xact_id(),
  caller name not null default current_user,
  source regclass not null
);

create index sync_callers_by_transaction on runtime.sync_callers (transaction_id);

-- Lets nobody pass but who may read the table and put triggers on it.
create function runtime.sync_refuse_caller(source regclass) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
      select from runtime.sync_callers c
        where c.transaction_id = pg_current_xact_id() and c.source = source
          and has_table_privilege(c.caller, source, 'SELECT') and has_table_privilege(c.caller, source, 'TRIGGER')) then
    raise exception 'nobody who asks for it may read % and put triggers on it', source
      using errcode = 'insufficient_privilege', hint = 'Have the owner of the table do it, or grant SELECT and TRIGGER on it.';
  end if;
end $$;

-- Forgets who has asked, and what was left behind.
create function runtime.sync_forget_callers() returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from runtime.sync_callers c
    where c.transaction_id = pg_current_xact_id() or c.transaction_id < pg_snapshot_xmin(pg_current_snapshot());
end $$;

-- Has a table's rows projected, and returns under which name: schema.table, or the one that the table had when it was attached first.
create function runtime.sync_register_table(
  doc_prefix text, stream text, source regclass, source_key text[], source_texts text[]
) returns text language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  held runtime.sync_projections;
  projection constant text := coalesce(
    (select p.projection from runtime.sync_projections p where p.source = source),
    (select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = source));
begin
  perform runtime.sync_refuse_caller(source);
  perform runtime.sync_forget_callers();
  doc_prefix := coalesce(doc_prefix, projection);
  if (octet_length(doc_prefix) between 1 and 128 and doc_prefix collate "C" !~ '[:\u0001-\u001f\u007f-\u009f]') is not true then
    raise exception 'documents cannot be called "%"', doc_prefix
      using errcode = 'SY016', hint = 'Give them a name of at most 128 bytes without a colon: documents => ''shop/order''.';
  end if;
  perform runtime.sync_genesis(regexp_replace(stream, '\{[^{}]+\}', 'x', 'g'));
  for held in
    select p.* from runtime.sync_projections p
      where p.projection = projection collate "C" or p.doc_prefix = doc_prefix collate "C"
  loop
    if held.source is null or held.projection <> projection
        or held.source <> source and exists (select from pg_class c where c.oid = held.source) then
      raise exception 'documents "%:…" of projection "%" are those of %', held.doc_prefix, held.projection,
          coalesce('table ' || held.source::text, 'a projector')
        using errcode = 'SY014', hint = 'Attach the table under a name of its own: documents => ''shop/order''.';
    end if;
    if held.doc_prefix <> doc_prefix and exists (
        select from runtime.sync_documents d where d.projection = projection collate "C" and d.document is not null) then
      raise exception 'the documents of % are "%:…", and cannot become "%:…"', source, held.doc_prefix, doc_prefix
        using errcode = 'SY014', hint = 'Keep their name. Whoever follows them knows them by it.';
    end if;
  end loop;
  insert into runtime.sync_projections as p
      (projection, doc_prefix, stream, source, source_key, source_texts, attached_by, attached_at)
    values (projection, doc_prefix, stream, source, source_key, source_texts, session_user, clock_timestamp())
    on conflict on constraint sync_projections_pkey do update
      set doc_prefix = excluded.doc_prefix, stream = excluded.stream, source = excluded.source,
          source_key = excluded.source_key, source_texts = excluded.source_texts, attached_by = excluded.attached_by,
          attached_at = excluded.attached_at;
  return projection;
end $$;

-- Where the comparison of a table's documents with its rows is. It begins anew if `again` says so or there was none. Who asks
-- goes on alone until their transaction ends.
create function runtime.sync_begin_reprojection(projection text, again boolean) returns runtime.sync_reprojections
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  state runtime.sync_reprojections;
begin
  perform runtime.sync_refuse_caller((select p.source from runtime.sync_projections p where p.projection = projection collate "C"));
  insert into runtime.sync_reprojections as r (projection) values (projection)
    on conflict on constraint sync_reprojections_pkey do update
      set phase = 'rows', after = null, looked_at = 0, applied = 0, started_at = clock_timestamp(), updated_at = clock_timestamp()
      where again;
  select r.* into strict state from runtime.sync_reprojections r where r.projection = projection collate "C" for update;
  if state.phase = 'done' then
    perform runtime.sync_forget_callers();
  end if;
  return state;
end $$;

-- Locks streams in order. What others have appended to them is then committed, and what they have changed and not appended yet
-- comes after whatever the caller appends.
create function runtime.sync_lock_streams(stream_ids text[]) returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
  target text;
begin
  for target in select distinct t.id collate "C" from unnest(stream_ids) t(id) where t.id is not null order by 1 loop
    perform runtime.sync_lock_stream(target);
  end loop;
end $$;

-- The documents of a projection after this one that are not deleted: where each is, what tells its row from others, and whether
-- that is still what the document is known by.
create function runtime.sync_documents_after(projection text, after text, most int)
returns table (entity_id text, stream_id text, keys text[], is_known boolean) language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_variable
declare
  of runtime.sync_projections;
begin
  select p.* into of from runtime.sync_projections p where p.projection = projection collate "C";
  perform runtime.sync_refuse_caller(of.source);
  return query
    select d.entity_id, d.stream_id,
        (select array_agg(d.document ->> k.name order by k.nth) from unnest(of.source_key) with ordinality k(name, nth)),
        coalesce(runtime.sync_join_key(of.source_key, d.document) = d.entity_id, false)
      from runtime.sync_documents d
      where d.projection = projection collate "C" and d.entity_id > after collate "C" and d.document is not null
      order by d.projection, d.entity_id limit most;
end $$;

-- Projects rows of a table as they are, deletes the documents of entities that have none, and notes how far that is. A row whose
-- stream the caller has not locked is left out: somebody is changing it, and their trigger projects it.
create function runtime.sync_write_rows(
  projection text, documents jsonb[], gone text[], locked text[], phase text, after jsonb, looked_at int
) returns bigint language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  of runtime.sync_projections;
  written bigint;
begin
  select p.* into of from runtime.sync_projections p where p.projection = projection collate "C";
  perform runtime.sync_refuse_caller(of.source);
  perform runtime.sync_forget_callers();
  insert into runtime.sync_changes (projection, entity_id, stream_id, document, canonical, is_first)
    select projection, runtime.sync_entity_of(of.source_key, r.document), r.stream_id, r.document,
        runtime.sync_canonical_document(r.document), false
      from (select d.document, runtime.sync_fill_stream(of.stream, d.document) as stream_id
          from unnest(documents) d(document) offset 0) r
      where r.stream_id = any (locked);
  insert into runtime.sync_changes (projection, entity_id, is_first)
    select projection, g.entity_id, false from unnest(gone) g(entity_id);
  written := runtime.sync_append_changes();
  update runtime.sync_reprojections r
    set phase = phase, after = after, looked_at = r.looked_at + looked_at, applied = r.applied + written,
        updated_at = clock_timestamp()
    where r.projection = projection collate "C";
  return written;
end $$;

-- The values of a key as literals of these types.
create function runtime.sync_literals(names text[], types text[], key jsonb) returns text language plpgsql immutable as $$
begin
  return (
    select string_agg(format('%L::%s', key ->> k.name, k.type), ', ' order by k.nth)
      from unnest(names, types) with ordinality k(name, type, nth));
end $$;

-- Compares the next documents of a table with its rows, at most `most`, and projects what differs. Goes on where the last call
-- ended, and begins anew if there was none or `again` says so. The caller reads the table with their own rights, and runs nothing of
-- the table's owner: a key is compared with a literal, which is read by its type and not by a cast that somebody has made.
create function runtime.sync_reproject(
  projection text, most int, again boolean default false,
  out phase text, out looked_at bigint, out applied bigint, out after text
) language plpgsql
set search_path = pg_catalog, pg_temp
-- Who does not see all rows is refused: the document of a row that a policy hides would be taken for one without a row.
set row_security = off
-- As runtime.sync_document writes values.
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'iso_8601'
set bytea_output = 'hex'
set extra_float_digits = 1
set lc_monetary = 'C'
as $$
#variable_conflict use_variable
declare
  of runtime.sync_projections;
  state runtime.sync_reprojections;
  columns record;
  texts text[];
  -- The key's columns in a list, as parts of a JSON object, from the last to the first, and the types of their values.
  keys text;
  key_of text;
  backwards text;
  key_types text[];
  rows_of text;
  range text := 'true';
  last jsonb;
  found_streams text[];
  found_rows int;
  documents jsonb[];
  given text;
  last_id text;
  gone text[];
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'found a transaction that is %, expected read committed', current_setting('transaction_isolation')
      using errcode = 'active_sql_transaction', hint = 'Only READ COMMITTED sees what others have committed once streams are locked.';
  end if;
  select p.* into of from runtime.sync_projections p where p.projection = projection collate "C";
  if of.source is null then
    raise exception 'projection "%" is %', projection, case when of.projection is null then 'not known' else 'a projector''s' end
      using errcode = 'SY014', hint = 'Name a projection of a table. A projector projects again by calling runtime.sync_project '
        'with a higher projection_version.';
  end if;
  insert into runtime.sync_callers (source) values (of.source);
  state := runtime.sync_begin_reprojection(projection, again);

  columns := runtime.sync_columns(of.source);
  texts := nullif(coalesce(columns.texts, '{}') || of.source_texts, '{}');
  select string_agg(c.value, ', ' order by c.nth), string_agg(format('%L, format(''%%s'', n.%I)', c.name, c.name), ', ' order by c.nth),
      string_agg(c.value || ' desc', ', ' order by c.nth), array_agg(c.type order by c.nth)
    into keys, key_of, backwards, key_types
    from (
      select k.name, k.nth,
          -- Values of types that somebody has made are compared as texts.
          case when b.base >= 16384 then format('format(''%%s'', n.%I) collate "C"', k.name) else format('n.%I', k.name) end as value,
          case when b.base >= 16384 then 'text' else format_type(b.base, b.modifier) end as type
        from unnest(of.source_key) with ordinality k(name, nth)
          join pg_attribute a on a.attrelid = of.source and a.attname = k.name and not a.attisdropped
          join pg_type t on t.oid = a.atttypid
          cross join lateral (
            select case t.typtype when 'd' then t.typbasetype else t.oid end as base,
                case t.typtype when 'd' then t.typtypmod else a.atttypmod end as modifier) b) c;
  if cardinality(key_types) is distinct from cardinality(of.source_key) then
    raise exception 'table % has not all columns of its key (%)', of.source, array_to_string(of.source_key, ', ')
      using errcode = 'SY015', hint = 'If a column was renamed or dropped, attach the table again.';
  end if;
  rows_of := format('(select runtime.sync_document_of(to_jsonb(r.*), $1) as document from (select %s) r)', columns.list);

  if state.phase = 'rows' then
    if state.after is not null then
      range := format('(%s) > (%s)', keys, runtime.sync_literals(of.source_key, key_types, state.after));
    end if;
    execute format('
      select count(*), (array_agg(jsonb_build_object(%s) order by %s))[1], array_agg(distinct runtime.sync_fill_stream($2, d.document))
        from (select n.* from %s n where %s order by %s limit $3) n cross join lateral %s d',
        key_of, backwards, of.source, range, keys, rows_of)
      into found_rows, last, found_streams using texts, of.stream, most;
    if found_rows = 0 then
      perform runtime.sync_write_rows(projection, '{}', '{}', '{}', 'documents', null, 0);
    else
      perform runtime.sync_lock_streams(found_streams);
      execute format('select array_agg(d.document) from %s n cross join lateral %s d where %s and (%s) <= (%s)',
          of.source, rows_of, range, keys, runtime.sync_literals(of.source_key, key_types, last))
        into documents using texts;
      perform runtime.sync_write_rows(projection, documents, '{}', found_streams, 'rows', last, found_rows);
    end if;
  elsif state.phase = 'documents' then
    -- What is no longer known by its key is gone: the rows have been looked at before, by the key that there is.
    select count(*), max(d.entity_id collate "C"), array_agg(distinct d.stream_id),
        array_agg(d.entity_id) filter (where not d.is_known),
        string_agg(format('(%L, %s)', d.entity_id, runtime.sync_literals(of.source_key, key_types, (
            select jsonb_object_agg(k.name, k.value) from unnest(of.source_key, d.keys) k(name, value)))), ', ')
          filter (where d.is_known)
      into found_rows, last_id, found_streams, gone, given
      from runtime.sync_documents_after(projection, coalesce(state.after ->> 0, ''), most) d;
    if found_rows = 0 then
      perform runtime.sync_write_rows(projection, '{}', '{}', '{}', 'done', null, 0);
    else
      perform runtime.sync_lock_streams(found_streams);
      if given is not null then
        execute format('select $1 || array_agg(e.id) from (values %s) e(id, %s) where not exists (select from %s n where (%s) = (%s))',
            given, (select string_agg(format('k%s', nth), ', ') from generate_series(1, cardinality(key_types)) nth), of.source, keys,
            (select string_agg(format('e.k%s', nth), ', ') from generate_series(1, cardinality(key_types)) nth))
          into gone using gone;
      end if;
      perform runtime.sync_write_rows(projection, '{}', gone, '{}', 'documents', jsonb_build_array(last_id), found_rows);
    end if;
  end if;
  select r.phase, r.looked_at, r.applied, r.after::text into phase, looked_at, applied, after
    from runtime.sync_reprojections r where r.projection = projection collate "C";
end $$;

-- Makes a table a stream of documents: one row, one document, `documents` and the row's key its key. `stream` may name columns in
-- braces. `key` names the columns of a unique index, where the primary key is not meant. A number that may be a fraction becomes a
-- text, and so do the numbers of `texts`. The rows that are there follow at once, at most 10,000 of them; for more of them,
-- `spacetime-sync reproject` does it beside the table's writers. May be repeated, to change any of it.
create function runtime.sync_attach(
  source regclass, stream text, key text[] default null, documents text default null, texts text[] default '{}'
) returns text language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  relation record;
  projection text;
  missing text;
  step record;
  looked_at bigint := -1;
begin
  select c.relkind, n.nspname, c.relname into relation
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = source;
  if relation.relkind not in ('r', 'p') or relation.nspname in ('runtime', 'spacetime_sync', 'pg_catalog') then
    raise exception '% is no table that can be attached', source
      using errcode = 'wrong_object_type', hint = 'Attach a table of your own, not a view, and none of the lane.';
  end if;
  if relation.relkind = 'p' or exists (select from pg_inherits i where source in (i.inhrelid, i.inhparent)) then
    raise exception '% is partitioned, a partition, or of an inheritance', source
      using errcode = 'wrong_object_type',
        hint = 'What is written to such a table by the name of another fires none of its triggers. Attach a plain table.';
  end if;

  if key is null then
    select array_agg(a.attname::text order by k.nth) into key
      from pg_index i cross join lateral unnest(i.indkey::int2[]) with ordinality k(attnum, nth)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
      where i.indrelid = source and i.indisprimary;
    if key is null then
      raise exception 'table % has no primary key, so nothing tells its documents apart', source
        using errcode = 'SY015', hint = 'Add a primary key, or name the columns of a unique index: key => array[''id''].';
    end if;
  elsif not exists (
    select from pg_index i
      where i.indrelid = source and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
        and (select array_agg(a.attname::text order by a.attname) from pg_attribute a
            where a.attrelid = source and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]) and a.attnotnull)
          = (select array_agg(k.name order by k.name collate "C") from unnest(key) k(name))
        and i.indnkeyatts = cardinality(key)) then
    raise exception 'table % has no unique index over exactly (%) whose columns are never null', source, array_to_string(key, ', ')
      using errcode = 'SY015', hint = 'Name the columns of such an index, or add one and set the columns NOT NULL.';
  end if;

  select string_agg(format('%I', a.attname), ', ') into missing
    from pg_attribute a join pg_type t on t.oid = a.atttypid
      cross join lateral (select case t.typtype when 'd' then t.typbasetype else t.oid end as base) b join pg_type bt on bt.oid = b.base
    where a.attrelid = source and a.attname = any (key) and a.attnum > 0 and b.base < 16384
      and (bt.typcategory in ('A', 'C') or bt.oid in ('json'::regtype, 'jsonb'::regtype, 'xml'::regtype));
  if missing is not null then
    raise exception 'table % has a key of lists or objects: %', source, missing
      using errcode = 'SY015', hint = 'Name the columns of a unique index over plain values.';
  end if;

  select string_agg(distinct w.name, ', ') into missing
    from (
      select m[1] as name from regexp_matches(stream, '\{([^{}]+)\}', 'g') m
      union all
      select t.name from unnest(texts) t(name)) w
    where not exists (
      select from pg_attribute a where a.attrelid = source and a.attname = w.name and a.attnum > 0 and not a.attisdropped);
  if missing is not null then
    raise exception 'table % has no column %', source, missing
      using errcode = 'undefined_column', hint = 'Name columns of the table in braces, and in texts.';
  end if;

  insert into runtime.sync_callers (source) values (source);
  projection := runtime.sync_register_table(documents, stream, source, key, coalesce(texts, '{}'));
  execute format('
    create or replace trigger spacetime_sync_insert after insert on %1$s referencing new table as new_rows
      for each statement execute function runtime.sync_document(%2$L);
    create or replace trigger spacetime_sync_update after update on %1$s referencing old table as old_rows new table as new_rows
      for each statement execute function runtime.sync_document(%2$L);
    create or replace trigger spacetime_sync_delete after delete on %1$s referencing old table as old_rows
      for each statement execute function runtime.sync_document(%2$L);
    create or replace trigger spacetime_sync_truncate after truncate on %1$s
      for each statement execute function runtime.sync_document(%2$L)', source, projection);

  step := runtime.sync_reproject(projection, 1000, again => true);
  while step.phase = 'rows' and step.looked_at < 10000 loop
    step := runtime.sync_reproject(projection, 1000);
  end loop;
  while step.phase = 'documents' loop
    step := runtime.sync_reproject(projection, 1000);
  end loop;
  if step.phase <> 'done' then
    raise notice '% has more than 10,000 rows; the others follow with: spacetime-sync reproject %', source, projection;
  end if;
  return projection;
end $$;

-- Ends what runtime.sync_attach began. The documents stay as they are.
create function runtime.sync_detach(source regclass) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  event text;
begin
  foreach event in array array['insert', 'update', 'delete', 'truncate'] loop
    execute format('drop trigger if exists spacetime_sync_%s on %s', event, source);
  end loop;
end $$;

insert into runtime.sync_duty_rights values
  ('runtime', 'select on runtime.sync_reprojections'),
  ('runtime', 'insert (source) on runtime.sync_callers'),
  ('runtime', 'execute on function runtime.sync_literals(text[], text[], jsonb)'),
  ('runtime', 'execute on function runtime.sync_attach(regclass, text, text[], text, text[])'),
  ('runtime', 'execute on function runtime.sync_detach(regclass)'),
  ('runtime', 'execute on function runtime.sync_register_table(text, text, regclass, text[], text[])'),
  ('runtime', 'execute on function runtime.sync_begin_reprojection(text, boolean)'),
  ('runtime', 'execute on function runtime.sync_lock_streams(text[])'),
  ('runtime', 'execute on function runtime.sync_documents_after(text, text, int)'),
  ('runtime', 'execute on function runtime.sync_write_rows(text, jsonb[], text[], text[], text, jsonb, int)'),
  ('runtime', 'execute on function runtime.sync_reproject(text, int, boolean)');

-- What is new belongs to nobody but the owner, and then to whoever appends.
do $$
declare
  of text;
  held record;
begin
  for of in
    select distinct format('function %s from %s', p.oid::regprocedure,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee <> p.proowner and p.pronamespace = 'runtime'::regnamespace
        and p.proname = any (array['sync_attach', 'sync_detach', 'sync_register_table', 'sync_begin_reprojection',
          'sync_lock_streams', 'sync_documents_after', 'sync_write_rows', 'sync_reproject', 'sync_literals', 'sync_refuse_caller',
          'sync_forget_callers'])
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner and c.oid = any (array['runtime.sync_reprojections', 'runtime.sync_callers']::regclass[])
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  for held in
    select distinct quote_ident(pg_get_userbyid(a.grantee)) as role, r.item
      from pg_proc p cross join lateral aclexplode(p.proacl) a join runtime.sync_duty_rights r on r.duty = 'runtime'
      where a.grantee <> p.proowner and a.grantee <> 0 and p.oid = 'runtime.sync_append(text, text, text, bytea)'::regprocedure
        and r.item ~ 'sync_(attach|detach|register_table|begin_reprojection|lock_streams|documents_after|write_rows|reproject|callers|literals)'
  loop
    execute format('grant %s to %s', held.item, held.role);
  end loop;
end $$;

reset role;
