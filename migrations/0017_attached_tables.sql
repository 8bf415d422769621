-- Tables as streams of documents: a row is a document, and what a transaction changes of it is one event. One statement makes a
-- table one:
--
--   select runtime.sync_attach('public.orders', stream => 'shop.user.{user_id}.orders');
--
-- Who may: whoever may append (the duty runtime) and may put triggers on the table. Who writes to the table afterwards needs no
-- right of the lane: the trigger has the owner's. It runs nothing of the table's owner. Postgres would, if it made JSON of a type
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
  -- One row of those that one statement writes has them appended.
  is_first boolean not null,
  constraint sync_changes_pkey primary key (transaction_id, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

create index sync_changes_by_stream on runtime.sync_changes (transaction_id, stream_id, id);

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

-- The id of a row: the value of its key. Of a key of several columns, the values with a colon between.
create function runtime.sync_entity_of(source_key text[], document jsonb) returns text language plpgsql immutable as $$
declare
  entity_id text;
begin
  if cardinality(source_key) = 1 then
    entity_id := document ->> source_key[1];
  else
    select string_agg(replace(replace(document ->> k.name, '%', '%25'), ':', '%3A'), ':' order by k.nth) into entity_id
      from unnest(source_key) with ordinality k(name, nth);
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

-- The columns of a table whose numbers become texts, because they may be fractions; those whose type somebody has made; and a
-- list for a select from it as n, in which the latter are texts. No list: there are none.
create function runtime.sync_columns(source regclass, out texts text[], out list text) language plpgsql stable as $$
#variable_conflict use_variable
declare
  is_foreign boolean;
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
  if not is_foreign then
    list := null;
  end if;
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
        from (select runtime.sync_document_of(to_jsonb(r), $4) as document from (select %s from new_rows n) r offset 0) d';
  gone_of constant text := '
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select $1, g.entity_id, row_number() over () = 1
        from (select runtime.sync_entity_of($2, to_jsonb(r)) as entity_id from (select %s from old_rows n) r) g';
  but_for constant text := '
        where not exists (
          select from (select runtime.sync_entity_of($2, to_jsonb(r)) as entity_id from (select %s from new_rows n) r) k
            where k.entity_id = g.entity_id)';
begin
  select p.* into of from runtime.sync_projections p where p.projection = tg_argv[0] collate "C";
  if of.source is distinct from tg_relid then
    raise exception 'the trigger % on % projects "%", which is %', tg_name, tg_relid::regclass, tg_argv[0],
        case when of.projection is null then 'not known' else 'of another table' end
      using errcode = 'SY014', hint = 'Attach the table with runtime.sync_attach.';
  end if;
  if tg_op = 'TRUNCATE' then
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select of.projection, d.entity_id, row_number() over () = 1
        from runtime.sync_documents d where d.projection = of.projection and d.document is not null;
    return null;
  end if;
  -- What runtime.sync_columns says, at less cost, where no type is somebody's.
  select array_agg(a.attname::text) filter (where a.atttypid = any (array['numeric', 'float4', 'float8', 'numeric[]', 'float4[]',
          'float8[]', 'money']::regtype[])), bool_or(a.atttypid >= 16384)
    into texts, is_foreign
    from pg_attribute a where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped;
  if is_foreign then
    columns := runtime.sync_columns(tg_relid);
    texts := columns.texts;
    is_foreign := columns.list is not null;
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
        from (select runtime.sync_document_of(to_jsonb(n), texts) as document from new_rows n offset 0) d;
  end if;
  if tg_op = 'DELETE' then
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select of.projection, runtime.sync_entity_of(of.source_key, to_jsonb(o)), row_number() over () = 1 from old_rows o;
  elsif tg_op = 'UPDATE' then
    insert into runtime.sync_changes (projection, entity_id, is_first)
      select of.projection, g.entity_id, row_number() over () = 1
        from (
          select runtime.sync_entity_of(of.source_key, to_jsonb(o)) as entity_id from old_rows o
          except
          select runtime.sync_entity_of(of.source_key, to_jsonb(n)) from new_rows n) g;
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
    select d.stream_id, d.payload_hash, d.document is null as gone into held
      from runtime.sync_documents d where d.projection = sole.projection and d.entity_id = sole.entity_id;
    if sole.document is null then
      sole.stream_id := case when not held.gone then held.stream_id end;
    end if;
    hash := sha256(convert_to(sole.canonical, 'UTF8'));
    if sole.stream_id is null or held.payload_hash = hash and held.stream_id = sole.stream_id then
      delete from runtime.sync_changes c where c.transaction_id = mine;
      return 0;
    end if;
    if (not held.gone and held.stream_id <> sole.stream_id) is not true then
      head := runtime.sync_lock_stream(sole.stream_id) + 1;
      doc_key := sole.doc_prefix || ':' || sole.entity_id;
      points := sole.canonical is not null and runtime.sync_document_points(sole.stream_id, doc_key, sole.canonical);
      if runtime.sync_append(sole.stream_id, runtime.sync_document_event_key(doc_key, head, 1),
          case when sole.document is null then 'document.delete' else 'document.put' end,
          convert_to(runtime.sync_document_event(doc_key, head, sole.canonical, hash, points), 'UTF8')) <> head then
        perform runtime.sync_refuse_document_event(sole.stream_id, head);
      end if;
      insert into runtime.sync_documents as d
          (projection, entity_id, stream_id, doc_key, doc_version, projection_version, seq, document, payload_hash,
            payload_bytes, hydration_required, projected_at)
        values (sole.projection, sole.entity_id, sole.stream_id, doc_key, head, 1, head, sole.document, hash,
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
  -- What is deleted is deleted where it is. What is in another stream is deleted there, too.
  update runtime.sync_changes c set stream_id = d.stream_id
    from runtime.sync_documents d
    where c.transaction_id = mine and c.document is null
      and d.projection = c.projection and d.entity_id = c.entity_id and d.document is not null;
  insert into runtime.sync_changes (projection, entity_id, stream_id, is_first)
    select c.projection, c.entity_id, d.stream_id, false
      from runtime.sync_changes c
        join runtime.sync_documents d on d.projection = c.projection and d.entity_id = c.entity_id
      where c.transaction_id = mine and c.document is not null and d.document is not null and d.stream_id <> c.stream_id;

  for target in
    select distinct c.stream_id from runtime.sync_changes c where c.transaction_id = mine and c.stream_id is not null
      order by 1
  loop
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
            left join runtime.sync_documents d on d.projection = c.projection and d.entity_id = c.entity_id
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
            join runtime.sync_changes c on c.transaction_id = mine and c.id = e.id
          -- What has moved is held where it has moved to, whichever stream comes first.
          where c.document is not null or not exists (
            select from runtime.sync_changes n
              where n.transaction_id = mine and n.projection = c.projection and n.entity_id = c.entity_id and n.document is not null)
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
as $$
begin
  perform runtime.sync_append_changes();
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
        and p.proname = any (array['sync_fill_stream', 'sync_entity_of', 'sync_texts_of', 'sync_document_of',
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
