-- Tables as streams of documents: a row is a document, and what a transaction changes of it is one event. One statement makes a
-- table one:
--
--   select runtime.sync_attach('public.orders', stream => 'shop.user.{user_id}.orders');
--
-- Who may: whoever may append (the duty runtime), and may read the table and put triggers on it. Who writes to the table afterwards
-- needs no right of the lane: the trigger has the owner's. It runs nothing of the table's owner. Postgres would, if it made JSON of a type
-- that somebody has made, so the value of such a column becomes a text, as the type writes it.
--
-- A transaction's changes are gathered, and appended as it commits: a stream is locked at the end, for as long as the commit
-- takes, and streams are locked in one order. A row that changes several times is told of once, as it is at last.

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
end $$;

-- What transactions that have not ended have changed. Only the transaction that wrote a row sees it, and deletes it before it
-- commits, so a crash takes nothing that counts, and none of it need be in the write-ahead log.
create unlogged table runtime.sync_changes (
  transaction_id xid8 not null default pg_current_xact_id(),
  id bigint generated always as identity,
  projection text collate "C" not null,
  entity_id text collate "C" not null,
  stream_id text collate "C",
  -- Null: it is deleted.
  document jsonb,
  canonical text,
  -- Whether it is deleted because it is told of in another stream.
  has_moved boolean not null default false,
  -- One row of those that one statement writes has them appended.
  is_first boolean not null,
  constraint sync_changes_pkey primary key (transaction_id, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

create index sync_changes_by_stream on runtime.sync_changes (transaction_id, stream_id, id) where stream_id is not null;

-- The name of the stream of a row: each column's name in braces becomes its value, percent-encoded where a name needs it.
create function runtime.sync_fill_stream(stream text, document jsonb) returns text language plpgsql immutable as $$
declare
  filled text := stream;
  name text;
  value text;
begin
  if position('{' in stream) = 0 then
    return stream;
  end if;
  for name in select m[1] from regexp_matches(stream, '\{([^{}]+)\}', 'g') m loop
    value := document ->> name;
    if coalesce(value, '') = '' then
      raise exception 'stream "%" needs a value in column "%", found %', stream, name,
          case when document ? name then 'none' else 'no such column' end
        using errcode = 'SY002', hint = 'Give every row a value there, or attach the table with another stream.';
    end if;
    if value ~ '[^A-Za-z0-9_-]' then
      value := (
        select string_agg(case when c.part ~ '[A-Za-z0-9_-]' then c.part
            else regexp_replace(upper(encode(convert_to(c.part, 'UTF8'), 'hex')), '(..)', '%\1', 'g') end, '' order by c.nth)
          from regexp_split_to_table(value, '') with ordinality c(part, nth));
    end if;
    filled := replace(filled, '{' || name || '}', value);
  end loop;
  return filled;
end $$;

-- The values of a key with a colon between. Null: one of them is missing.
create function runtime.sync_join_key(source_key text[], document jsonb) returns text language plpgsql immutable as $$
begin
  if cardinality(source_key) = 1 then
    return document ->> source_key[1];
  end if;
  return (
    select case when bool_and(document ->> k.name is not null)
        then string_agg(replace(replace(document ->> k.name, '%', '%25'), ':', '%3A'), ':' order by k.nth) end
      from unnest(source_key) with ordinality k(name, nth));
end $$;

-- The id of a row: the value of its key.
create function runtime.sync_entity_of(source_key text[], document jsonb) returns text language plpgsql immutable as $$
declare
  entity_id constant text := runtime.sync_join_key(source_key, document);
begin
  if entity_id is null then
    raise exception 'a row has no value in a column of its key (%)', array_to_string(source_key, ', ')
      using errcode = 'SY016', hint = 'If a column was renamed or dropped, attach the table again.';
  end if;
  if (octet_length(entity_id) between 1 and 255 and entity_id collate "C" !~ '[\u0001-\u001f\u007f-\u009f]') is not true then
    perform runtime.sync_refuse_entity(entity_id);
  end if;
  return entity_id;
end $$;

-- Every number in a value as a text.
create function runtime.sync_texts_of(value jsonb) returns jsonb language plpgsql immutable as $$
begin
  return case jsonb_typeof(value)
    when 'number' then to_jsonb(value::text)
    when 'array' then coalesce((
      select jsonb_agg(runtime.sync_texts_of(e.value) order by e.nth)
        from jsonb_array_elements(value) with ordinality e(value, nth)), value)
    when 'object' then coalesce((
      select jsonb_object_agg(m.key, runtime.sync_texts_of(m.value)) from jsonb_each(value) m), value)
    else value end;
end $$;

-- The document of a row: the row, with texts in these columns.
create function runtime.sync_document_of(row_as_json jsonb, texts text[]) returns jsonb language plpgsql immutable as $$
begin
  if texts is null then
    return row_as_json;
  end if;
  return row_as_json || coalesce((
    select jsonb_object_agg(t.name, runtime.sync_texts_of(row_as_json -> t.name))
      from unnest(texts) t(name) where row_as_json ? t.name), '{}');
end $$;

-- The columns of a table whose numbers become texts, because they may be fractions, and a list for a select from it as n, in which
-- values of types that somebody has made are texts.
create function runtime.sync_columns(source regclass, out texts text[], out is_foreign boolean, out list text) language plpgsql stable as $$
#variable_conflict use_variable
begin
  select array_agg(a.attname::text) filter (where b.base = any (array['numeric', 'float4', 'float8', 'numeric[]', 'float4[]',
          'float8[]', 'money']::regtype[])),
      bool_or(b.base >= 16384),
      string_agg(case when b.base >= 16384
        then format('case when n.%1$I is null then null else format(''%%s'', n.%1$I) end as %1$I', a.attname)
        else format('n.%I', a.attname) end, ', ' order by a.attnum)
    into texts, is_foreign, list
    from pg_attribute a join pg_type t on t.oid = a.atttypid
      -- JSON is made of what a domain is over. A domain over a domain counts as a type of somebody's.
      cross join lateral (select case t.typtype when 'd' then t.typbasetype else t.oid end as base) b
    where a.attrelid = source and a.attnum > 0 and not a.attisdropped;
end $$;

-- What a trigger of sync_attach runs after each statement. It has the owner's rights.
create function runtime.sync_document() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- A value is written in one way, whatever the session of whoever writes it says.
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'iso_8601'
set bytea_output = 'hex'
set extra_float_digits = 1
set lc_monetary = 'C'
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  of runtime.sync_projections;
  columns record;
  texts text[];
  is_foreign boolean;
  rows_of constant text := '
    insert into runtime.sync_changes (projection, entity_id, stream_id, document, canonical, is_first)
      select $1, runtime.sync_entity_of($2, d.document), runtime.sync_fill_stream($3, d.document), d.document,
          runtime.sync_canonical_document(d.document), row_number() over () = 1
        from (select runtime.sync_document_of(to_jsonb(r.*), $4) as document from (select %s from new_rows n) r offset 0) d';
  gone_of constant text := '
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select $1, g.entity_id, row_number() over () = 1
        from (select runtime.sync_entity_of($2, to_jsonb(r.*)) as entity_id from (select %s from old_rows n) r) g';
  but_for constant text := '
        where not exists (
          select from (select runtime.sync_entity_of($2, to_jsonb(r.*)) as entity_id from (select %s from new_rows n) r) k
            where k.entity_id = g.entity_id)';
begin
  select p.* into of from runtime.sync_projections p where p.projection = tg_argv[0] collate "C";
  if of.source is distinct from tg_relid then
    raise exception 'the trigger % on % projects "%", which is %', tg_name, tg_relid::regclass, tg_argv[0],
        case when of.projection is null then 'not known' else 'of another table' end
      using errcode = 'SY014', hint = 'Attach the table with runtime.sync_attach.';
  end if;
  if tg_op = 'TRUNCATE' then
    -- What the same transaction has changed is not held yet.
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select of.projection, g.entity_id, row_number() over (order by g.entity_id) = 1
        from (
          select d.entity_id from runtime.sync_documents d where d.projection = of.projection and d.document is not null
          union
          select c.entity_id from runtime.sync_changes c
            where c.transaction_id = pg_current_xact_id() and c.projection = of.projection) g
        order by g.entity_id;
    return null;
  end if;
  -- Without rows of the trigger's own, these names would be those of temporary relations of whoever writes, and a view among them
  -- would run what they please with the rights of the owner.
  if to_regclass('new_rows') is not null or to_regclass('old_rows') is not null or tg_level <> 'STATEMENT' or not exists (
      select from pg_trigger t
        where t.tgrelid = tg_relid and t.tgname = tg_name
          and t.tgnewtable is not distinct from (case when tg_op <> 'DELETE' then 'new_rows' end)::name
          and t.tgoldtable is not distinct from (case when tg_op <> 'INSERT' then 'old_rows' end)::name) then
    raise exception 'the trigger % on % has not the rows that its statement changed, or a temporary relation is called like them',
        tg_name, tg_relid::regclass
      using errcode = 'SY014', hint = 'Attach the table with runtime.sync_attach, and call no temporary relation new_rows or old_rows.';
  end if;
  -- What runtime.sync_columns says, at less cost, where no type is somebody's.
  select array_agg(a.attname::text) filter (where a.atttypid = any (array['numeric', 'float4', 'float8', 'numeric[]', 'float4[]',
          'float8[]', 'money']::regtype[])), bool_or(a.atttypid >= 16384)
    into texts, is_foreign
    from pg_attribute a where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped;
  if is_foreign then
    columns := runtime.sync_columns(tg_relid);
    texts := columns.texts;
    is_foreign := columns.is_foreign;
  end if;
  texts := nullif(coalesce(texts, '{}') || of.source_texts, '{}');

  if is_foreign then
    if tg_op <> 'DELETE' then
      execute format(rows_of, columns.list) using of.projection, of.source_key, of.stream, texts;
    end if;
    if tg_op = 'DELETE' then
      execute format(gone_of, columns.list) using of.projection, of.source_key;
    elsif tg_op = 'UPDATE' then
      execute format(gone_of || but_for, columns.list, columns.list) using of.projection, of.source_key;
    end if;
    return null;
  end if;
  -- The same, planned once. OFFSET keeps Postgres from making the document anew wherever it is used.
  if tg_op <> 'DELETE' then
    insert into runtime.sync_changes (projection, entity_id, stream_id, document, canonical, is_first)
      select of.projection, runtime.sync_entity_of(of.source_key, d.document), runtime.sync_fill_stream(of.stream, d.document),
          d.document, runtime.sync_canonical_document(d.document), row_number() over () = 1
        from (select runtime.sync_document_of(to_jsonb(n.*), texts) as document from new_rows n offset 0) d;
  end if;
  if tg_op = 'DELETE' then
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select of.projection, runtime.sync_entity_of(of.source_key, to_jsonb(o.*)), row_number() over () = 1 from old_rows o;
  elsif tg_op = 'UPDATE' then
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select of.projection, g.entity_id, row_number() over () = 1
        from (
          select runtime.sync_entity_of(of.source_key, to_jsonb(o.*)) as entity_id from old_rows o
          except
          select runtime.sync_entity_of(of.source_key, to_jsonb(n.*)) from new_rows n) g;
  end if;
  return null;
end $$;

create function runtime.sync_refuse_document_event(stream_id text, seq bigint) returns void language plpgsql as $$
begin
  raise exception 'stream "%" holds an event of a document that was not projected, by a key for seq %', stream_id, seq
    using errcode = 'SY001', hint = 'Append nothing under keys that begin with doc: but by a projection.';
end $$;

-- Appends what this transaction has changed, as far as it differs from what is held, and returns how many events that made.
create function runtime.sync_append_changes() returns bigint language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  mine constant xid8 := pg_current_xact_id();
  -- So many events are in memory at once.
  most constant int := 1000;
  sole record;
  held record;
  hash bytea;
  doc_key text;
  points boolean;
  superseded bigint[];
  targets text[];
  locked text[] := '{}';
  target text;
  head bigint;
  part record;
  seqs bigint[];
  after bigint;
  total bigint := 0;
begin
  select c.*, p.doc_prefix,
      (select count(*) from (select from runtime.sync_changes o where o.transaction_id = mine limit 2) o) as changes
    into sole
    from runtime.sync_changes c join runtime.sync_projections p on p.projection = c.projection
    where c.transaction_id = mine order by c.transaction_id, c.id limit 1;
  if not found then
    return 0;
  end if;
  -- Most transactions change one row, and need no more than this.
  if sole.changes = 1 then
    -- What is held counts once its stream is locked, and it may have moved until then.
    loop
      select d.stream_id, d.payload_hash, d.document is null as gone into held
        from runtime.sync_documents d where d.projection = sole.projection and d.entity_id = sole.entity_id;
      target := case when sole.document is not null then sole.stream_id when not held.gone then held.stream_id end;
      exit when target is null or target = any (locked) or sole.document is not null and not held.gone and held.stream_id <> target;
      head := runtime.sync_lock_stream(target) + 1;
      locked := locked || target;
    end loop;
    hash := sha256(convert_to(sole.canonical, 'UTF8'));
    if target is null or held.payload_hash = hash and held.stream_id = target then
      delete from runtime.sync_changes c where c.transaction_id = mine;
      return 0;
    end if;
    if cardinality(locked) = 1 and (not held.gone and held.stream_id <> target) is not true then
      doc_key := sole.doc_prefix || ':' || sole.entity_id;
      points := sole.canonical is not null and runtime.sync_document_points(target, doc_key, sole.canonical);
      if runtime.sync_append(target, runtime.sync_document_event_key(doc_key, head, 1),
          case when sole.document is null then 'document.delete' else 'document.put' end,
          convert_to(runtime.sync_document_event(doc_key, head, sole.canonical, hash, points), 'UTF8')) <> head then
        perform runtime.sync_refuse_document_event(target, head);
      end if;
      insert into runtime.sync_documents as d
          (projection, entity_id, stream_id, doc_key, doc_version, projection_version, seq, document, payload_hash,
            payload_bytes, hydration_required, projected_at)
        values (sole.projection, sole.entity_id, target, doc_key, head, 1, head, sole.document, hash,
          octet_length(sole.canonical), points, clock_timestamp())
        on conflict on constraint sync_documents_pkey do update
          set stream_id = excluded.stream_id, doc_version = excluded.doc_version,
              projection_version = excluded.projection_version, seq = excluded.seq, document = excluded.document,
              payload_hash = excluded.payload_hash, payload_bytes = excluded.payload_bytes,
              hydration_required = excluded.hydration_required, projected_at = excluded.projected_at;
      delete from runtime.sync_changes c where c.transaction_id = mine;
      return 1;
    end if;
  end if;
  -- A row's last change counts.
  superseded := array(
    select w.id from (
      select c.id, row_number() over (partition by c.projection, c.entity_id order by c.id desc) as nth
        from runtime.sync_changes c where c.transaction_id = mine) w
      where w.nth > 1);
  if superseded <> '{}' then
    delete from runtime.sync_changes c where c.transaction_id = mine and c.id = any (superseded);
  end if;
  -- Where documents are counts once those streams are locked, and they may have moved until then. OFFSET keeps Postgres from
  -- joining by reading all documents, here and below.
  loop
    targets := array(
      select c.stream_id from runtime.sync_changes c where c.transaction_id = mine and c.document is not null
      union
      select d.stream_id from runtime.sync_changes c
        cross join lateral (
          select d.stream_id from runtime.sync_documents d
            where d.projection = c.projection and d.entity_id = c.entity_id and d.document is not null offset 0) d
        where c.transaction_id = mine
      order by 1);
    exit when targets <@ locked;
    foreach target in array targets loop
      if target <> all (locked) then
        perform runtime.sync_lock_stream(target);
      end if;
    end loop;
    locked := locked || targets;
  end loop;
  -- What is deleted is deleted where it is. What is in another stream is deleted there, too.
  update runtime.sync_changes c
    set stream_id = (
      select d.stream_id from runtime.sync_documents d
        where d.projection = c.projection and d.entity_id = c.entity_id and d.document is not null)
    where c.transaction_id = mine and c.document is null;
  insert into runtime.sync_changes (projection, entity_id, stream_id, has_moved, is_first)
    select c.projection, c.entity_id, d.stream_id, true, false
      from runtime.sync_changes c
        cross join lateral (
          select d.stream_id from runtime.sync_documents d
            where d.projection = c.projection and d.entity_id = c.entity_id and d.document is not null offset 0) d
      where c.transaction_id = mine and c.document is not null and d.stream_id <> c.stream_id;

  foreach target in array targets loop
    head := runtime.sync_lock_stream(target);
    after := 0;
    loop
      with changed as (
        select c.id, c.projection, c.entity_id, c.document, c.canonical, sha256(convert_to(c.canonical, 'UTF8')) as hash,
            p.doc_prefix || ':' || c.entity_id as doc_key
          from runtime.sync_changes c
            join runtime.sync_projections p on p.projection = c.projection
          where c.transaction_id = mine and c.id > after and c.stream_id = target collate "C"
          order by c.id limit most
      ), differing as (
        select c.*, head + row_number() over (order by c.id) as seq
          from changed c
            left join lateral (
              select d.document, d.payload_hash, d.stream_id from runtime.sync_documents d
                where d.projection = c.projection and d.entity_id = c.entity_id offset 0) d on true
          where case when c.document is null
            then d.document is not null
            else d.payload_hash is distinct from c.hash or d.stream_id <> target end
      ), shaped as (
        select d.*, d.canonical is not null and runtime.sync_document_points(target, d.doc_key, d.canonical) as points
          from differing d
      )
      select (select max(c.id) from changed c) as last, array_agg(s.seq order by s.id) as seqs,
          array_agg(runtime.sync_document_event_key(s.doc_key, s.seq, 1) order by s.id) as keys,
          array_agg(case when s.document is null then 'document.delete' else 'document.put' end order by s.id) as kinds,
          array_agg(convert_to(runtime.sync_document_event(s.doc_key, s.seq, s.canonical, s.hash, s.points), 'UTF8')
            order by s.id) as payloads,
          array_agg(s.id order by s.id) as ids, array_agg(s.points order by s.id) as points,
          array_agg(s.hash order by s.id) as hashes, array_agg(s.doc_key order by s.id) as doc_keys
        into part
        from shaped s;
      exit when part.last is null;
      after := part.last;
      continue when part.seqs is null;
      seqs := runtime.sync_append_batch(target, part.keys, part.kinds, part.payloads);
      if seqs is distinct from part.seqs then
        perform runtime.sync_refuse_document_event(target, part.seqs[1]);
      end if;
      total := total + cardinality(seqs);
      head := head + cardinality(seqs);
      insert into runtime.sync_documents as d
          (projection, entity_id, stream_id, doc_key, doc_version, projection_version, seq, document, payload_hash,
            payload_bytes, hydration_required, projected_at)
        select c.projection, c.entity_id, target, e.doc_key, e.seq, 1, e.seq, c.document, e.hash,
            octet_length(c.canonical), e.points, clock_timestamp()
          from unnest(part.ids, part.seqs, part.doc_keys, part.hashes, part.points) as e(id, seq, doc_key, hash, points)
            cross join lateral (
              select c.* from runtime.sync_changes c where c.transaction_id = mine and c.id = e.id offset 0) c
          -- What has moved is held where it has moved to, whichever stream comes first.
          where not c.has_moved
        on conflict on constraint sync_documents_pkey do update
          set stream_id = excluded.stream_id, doc_version = excluded.doc_version, projection_version = excluded.projection_version,
              seq = excluded.seq, document = excluded.document, payload_hash = excluded.payload_hash,
              payload_bytes = excluded.payload_bytes, hydration_required = excluded.hydration_required,
              projected_at = excluded.projected_at;
    end loop;
  end loop;
  delete from runtime.sync_changes c where c.transaction_id = mine;
  return total;
end $$;

create function runtime.sync_flush_changes() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
  -- The first of a transaction's appends all of them.
  if exists (select from runtime.sync_changes c where c.transaction_id = new.transaction_id and c.id = new.id) then
    perform runtime.sync_append_changes();
  end if;
  return null;
end $$;

create constraint trigger sync_changes_flush
  after insert on runtime.sync_changes deferrable initially deferred
  for each row when (new.is_first) execute function runtime.sync_flush_changes();

insert into runtime.sync_duty_rights values
  ('runtime', 'execute on function runtime.sync_document()'),
  ('runtime', 'execute on function runtime.sync_fill_stream(text, jsonb)'),
  ('runtime', 'execute on function runtime.sync_texts_of(jsonb)'),
  ('runtime', 'execute on function runtime.sync_document_of(jsonb, text[])'),
  ('runtime', 'execute on function runtime.sync_columns(regclass)');

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
        and p.proname = any (array['sync_fill_stream', 'sync_join_key', 'sync_entity_of', 'sync_texts_of', 'sync_document_of',
          'sync_columns', 'sync_document', 'sync_refuse_document_event', 'sync_append_changes',
          'sync_flush_changes'])
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner and c.oid = any (array['runtime.sync_changes', 'runtime.sync_changes_id_seq']::regclass[])
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  for held in
    select distinct quote_ident(pg_get_userbyid(a.grantee)) as role, r.item
      from pg_proc p cross join lateral aclexplode(p.proacl) a join runtime.sync_duty_rights r on r.duty = 'runtime'
      where a.grantee <> p.proowner and a.grantee <> 0 and p.oid = 'runtime.sync_append(text, text, text, bytea)'::regprocedure
        and r.item ~ 'sync_(document|document_of|fill_stream|texts_of|columns)\('
  loop
    execute format('grant %s to %s', held.item, held.role);
  end loop;
end $$;

reset role;
