-- Projections: documents by key, one row each, as read models that people can use, and what changes of them as events of their
-- streams. A projector calls runtime.sync_project in the transaction in which it reads what happened.
--
-- A document is a JSON object of texts, integers below 2^53, booleans, nulls, arrays and objects. A fraction is a text. So
-- every language, and the functions below, make the same bytes of it (RFC 8785), and the same hash. proto/vectors/ has vectors.
--
-- Errors, beside those of migrations 1, 4 and 13:
--   SY011 a document has no canonical JSON                  SY014 there is no such projection, or it is not the caller's
--   SY012 a projection goes backwards                       SY015 a table has no key
--   SY013 seq and version stand for another document        SY016 an entity's id is empty, too long or malformed
--   SY017 a seq or a version is out of range

do $$
declare
  owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'runtime.sync_streams'::regclass);
begin
  if owner <> current_user then
    execute format('set local role %I', owner);
  end if;
  -- While a transaction that appends is open, this cannot go on, and appends that come meanwhile wait behind it.
  perform set_config('lock_timeout', '5s', true);
end $$;

-- How large a payload may be, one row for each beginning of names of streams: the longest that fits decides, and the empty one
-- is every other stream's. It may be changed as the lane runs.
create table runtime.sync_payload_limits (
  stream_prefix text collate "C" primary key,
  -- The largest payload that an append takes. What is below 64 KiB is never looked at, because the look costs an append.
  payload_bytes int not null,
  -- The largest payload with which the event of a document holds the document itself. A larger one holds a pointer.
  inline_bytes int not null,
  constraint sync_payload_limits_prefix check (
    octet_length(stream_prefix) <= 255 and stream_prefix ~ '^[A-Za-z0-9._:/@+=~%-]*$'),
  constraint sync_payload_limits_payload check (payload_bytes between 65536 and 262144),
  constraint sync_payload_limits_inline check (inline_bytes between 4096 and payload_bytes)
);

insert into runtime.sync_payload_limits values
  ('runtime.run.', 262144, 262144),
  ('runtime.worker.', 65536, 65536),
  ('runtime.fleet.', 65536, 65536),
  ('runtime.codex.worker.events', 131072, 131072),
  -- Whatever else is appended may be as large as the contract allows, as it was before there were limits.
  ('', 262144, 65536);

create function runtime.sync_payload_limit(stream_id text) returns runtime.sync_payload_limits language plpgsql stable as $$
declare
  held runtime.sync_payload_limits;
begin
  select l.* into held from runtime.sync_payload_limits l
    where starts_with(sync_payload_limit.stream_id, l.stream_prefix) order by octet_length(l.stream_prefix) desc limit 1;
  return held;
end $$;

-- A payload that is above every class's least limit.
create function runtime.sync_refuse_payload() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  most constant int := (runtime.sync_payload_limit(new.stream_id)).payload_bytes;
begin
  if octet_length(new.payload) > most then
    raise exception 'payload has % bytes, stream "%" takes at most %', octet_length(new.payload), new.stream_id, most
      using errcode = 'SY005',
        hint = 'Split the payload, or store it elsewhere and append a reference to it. runtime.sync_payload_limits has the limits.';
  end if;
  return new;
end $$;

create trigger sync_stream_events_limit
  before insert on runtime.sync_stream_events
  for each row when (octet_length(new.payload) > 65536) execute function runtime.sync_refuse_payload();

-- How old what stands for the documents of a class may become. Null: there is nothing that stands for them.
alter table runtime.sync_retention
  add column snapshot_every interval,
  add constraint sync_retention_snapshot check (snapshot_every between interval '1 second' and interval '36500 days');

update runtime.sync_retention set snapshot_every = '300 seconds' where class = 'run_summaries';
update runtime.sync_retention set snapshot_every = '120 seconds' where class = 'codex_worker_summaries';

-- Why a document has no canonical JSON.
create function runtime.sync_refuse_document(reason text) returns text language plpgsql immutable parallel safe as $$
begin
  raise exception 'the document has no canonical JSON: %', reason
    using errcode = 'SY011',
      hint = 'A document holds texts, integers between -(2^53 - 1) and 2^53 - 1, booleans, nulls, arrays and objects, at most '
        '64 deep, and each name once. Write every other number as a text.';
end $$;

-- Whatever an append calls is in PL/pgSQL, because Postgres plans a function in SQL anew for each call of it.
create function runtime.sync_canonical_number(number numeric) returns text language plpgsql immutable parallel safe as $$
begin
  if abs(number) > 9007199254740991 then
    perform runtime.sync_refuse_document(
      format('found the number %s, expected none past 2^53 - 1', left(number::text, 100)));
  end if;
  if scale(number) > 0 then
    perform runtime.sync_refuse_document(format('found the number %s, expected a whole one', left(number::text, 100)));
  end if;
  return number::text;
end $$;

-- Names are in the order of their UTF-16 code units. That is the order of their bytes but for characters from U+E000 on: those
-- up to U+FFFF come after those that take two units. A mark before each says so.
create function runtime.sync_utf16_order(name text) returns text language plpgsql immutable parallel safe as $$
begin
  return regexp_replace(regexp_replace(name collate "C", '([\uE000-\uFFFF])', E'\uE001\\1', 'g'),
    '([\U00010000-\U0010FFFF])', E'\uE000\\1', 'g');
end $$;

-- The canonical JSON (RFC 8785) of a part of a document, with room for so many levels more.
create function runtime.sync_canonical_part(part jsonb, depth int) returns text
language plpgsql immutable strict parallel safe as $$
begin
  case jsonb_typeof(part)
    when 'object' then
      if depth < 1 then
        perform runtime.sync_refuse_document('it is nested more than 64 deep');
      end if;
      return '{' || coalesce((
        select string_agg(to_json(m.key)::text || ':' || case jsonb_typeof(m.value)
            when 'string' then m.value::text
            when 'number' then case when m.value::text ~ '^-?[0-9]{1,15}$' then m.value::text
              else runtime.sync_canonical_number(m.value::numeric) end
            when 'object' then runtime.sync_canonical_part(m.value, depth - 1)
            when 'array' then runtime.sync_canonical_part(m.value, depth - 1)
            else m.value::text end, ','
          order by case when octet_length(m.key) = length(m.key) then m.key
            else runtime.sync_utf16_order(m.key) end collate "C")
          from jsonb_each(part) m), '') || '}';
    when 'array' then
      if depth < 1 then
        perform runtime.sync_refuse_document('it is nested more than 64 deep');
      end if;
      return '[' || coalesce((
        select string_agg(case jsonb_typeof(e.value)
            when 'string' then e.value::text
            when 'number' then case when e.value::text ~ '^-?[0-9]{1,15}$' then e.value::text
              else runtime.sync_canonical_number(e.value::numeric) end
            when 'object' then runtime.sync_canonical_part(e.value, depth - 1)
            when 'array' then runtime.sync_canonical_part(e.value, depth - 1)
            else e.value::text end, ',' order by e.nth)
          from jsonb_array_elements(part) with ordinality e(value, nth)), '') || ']';
    when 'number' then
      return runtime.sync_canonical_number(part::numeric);
    else
      return part::text;
  end case;
end $$;

-- The canonical JSON (RFC 8785) of a document, or SY011 with what stands in its way. A jsonb has each name once: of names that
-- were repeated in the text it was made of, it has the last. runtime.sync_checked_json refuses such texts.
create function runtime.sync_canonical_json(document jsonb) returns text
language plpgsql immutable strict parallel safe as $$
begin
  return runtime.sync_canonical_part(document, 64);
end $$;

-- The canonical JSON of what is to be a document: an object, and not too large.
create function runtime.sync_canonical_document(document jsonb) returns text
language plpgsql immutable strict parallel safe as $$
declare
  canonical constant text := runtime.sync_canonical_part(document, 64);
begin
  if jsonb_typeof(document) <> 'object' then
    perform runtime.sync_refuse_document(format('found %s, expected an object', jsonb_typeof(document)));
  end if;
  if octet_length(canonical) > 16777216 then
    raise exception 'the document has % bytes of canonical JSON, expected at most 16777216', octet_length(canonical)
      using errcode = 'SY005', hint = 'Split the document, or store a part of it elsewhere and refer to it.';
  end if;
  return canonical;
end $$;

-- The hash of a document: of the UTF-8 of its canonical JSON.
create function runtime.sync_document_hash(document jsonb) returns text
language plpgsql immutable strict parallel safe as $$
begin
  return 'sha256:' || encode(sha256(convert_to(runtime.sync_canonical_part(document, 64), 'UTF8')), 'hex');
end $$;

-- A text of JSON as it is stored, or SY011 if an object in it has a name twice, or a number is written with an exponent or as
-- minus zero: what a jsonb no longer shows.
create function runtime.sync_checked_json(document json, depth int default 64) returns jsonb
language plpgsql immutable strict parallel safe as $$
declare
  repeated text;
begin
  if depth < 1 and json_typeof(document) <> 'number' then
    perform runtime.sync_refuse_document('it is nested more than 64 deep');
  end if;
  case json_typeof(document)
    when 'object' then
      select min(m.key) into repeated
        from (select k.key from json_object_keys(document) k(key) group by k.key having count(*) > 1) m;
      if repeated is not null then
        perform runtime.sync_refuse_document(format('found the name %s twice in one object', to_json(left(repeated, 100))));
      end if;
      perform runtime.sync_checked_json(m.value, depth - 1)
        from json_each(document) m where json_typeof(m.value) in ('object', 'array', 'number');
    when 'array' then
      perform runtime.sync_checked_json(e.value, depth - 1)
        from json_array_elements(document) e(value) where json_typeof(e.value) in ('object', 'array', 'number');
    when 'number' then
      if btrim(document::text, E' \t\r\n') !~ '^(0|-?[1-9][0-9]*)$' then
        perform runtime.sync_refuse_document(format('found the number %s, expected digits alone', left(document::text, 100)));
      end if;
    else null;
  end case;
  return document::jsonb;
end $$;

-- What there is to project. A projection's documents come from a projector, which calls runtime.sync_project, or from a table,
-- which runtime.sync_attach has named.
create table runtime.sync_projections (
  projection text collate "C" primary key,
  -- What the keys of its documents begin with. After it come a colon and the id of the entity.
  doc_prefix text collate "C" not null unique,
  -- The stream that hears of them, with the names of columns of the table in braces; null: the projector names one each time.
  stream text collate "C",
  -- The table, the columns that tell its rows apart, and those whose numbers become texts. Null: a projector's.
  source regclass,
  source_key text[] collate "C",
  source_texts text[] collate "C",
  attached_by name,
  attached_at timestamptz,
  constraint sync_projections_name check (octet_length(projection) between 1 and 128 and projection !~ '[\u0001-\u001f\u007f-\u009f]'),
  constraint sync_projections_prefix check (
    octet_length(doc_prefix) between 1 and 128 and doc_prefix !~ '[:\u0001-\u001f\u007f-\u009f]'),
  constraint sync_projections_stream check (octet_length(stream) between 1 and 255),
  constraint sync_projections_source check ((source is null) = (source_key is null) and (source is null) = (source_texts is null)
    and (source is null or stream is not null))
);

insert into runtime.sync_projections (projection, doc_prefix, stream) values
  ('run_summaries', 'runtime/run_summary', 'runtime.run_summaries'),
  ('codex_worker_summaries', 'runtime/codex_worker_summary', 'runtime.codex_worker_summaries'),
  -- Each worker, and each user's or guest's fleet, has a stream of its own.
  ('worker_lifecycle', 'runtime/worker', null),
  ('fleet_workers', 'runtime/fleet_worker', null),
  ('notifications', 'runtime/notification', 'runtime.notifications');

-- The newest version of each document. Each read model is a part of it, and has what follows as its columns.
create table runtime.sync_documents (
  projection text collate "C" not null,
  entity_id text collate "C" not null,
  stream_id text collate "C" not null,
  doc_key text collate "C" not null,
  -- The seq, in its source, of what the document was made of last; of a table's, the seq of its event.
  doc_version bigint not null,
  -- The version of the code that made it.
  projection_version int not null,
  -- Of the event that told of it last.
  seq bigint not null,
  -- Null: it is deleted, and the row remembers that.
  document jsonb,
  payload_hash bytea,
  -- How long its canonical JSON is, and whether its event holds a pointer instead.
  payload_bytes int,
  hydration_required boolean not null,
  projected_at timestamptz not null,
  constraint sync_documents_pkey primary key (projection, entity_id)
) partition by list (projection);

create index sync_documents_by_stream on runtime.sync_documents (stream_id, doc_key);

create table runtime.sync_run_summaries partition of runtime.sync_documents for values in ('run_summaries') with (fillfactor = 70);
create table runtime.sync_codex_worker_summaries partition of runtime.sync_documents
  for values in ('codex_worker_summaries') with (fillfactor = 70);
create table runtime.sync_worker_lifecycle partition of runtime.sync_documents
  for values in ('worker_lifecycle') with (fillfactor = 70);
create table runtime.sync_fleet_workers partition of runtime.sync_documents
  for values in ('fleet_workers') with (fillfactor = 70);
create table runtime.sync_notifications partition of runtime.sync_documents
  for values in ('notifications') with (fillfactor = 70);
create table runtime.sync_other_documents partition of runtime.sync_documents default with (fillfactor = 70);

-- How far each projection is with each entity.
create view runtime.sync_projection_checkpoints as
  select d.projection as projection_name, d.entity_id, d.doc_version as last_runtime_seq, d.projection_version,
      'sha256:' || encode(d.payload_hash, 'hex') as summary_hash, d.stream_id, d.seq, d.projected_at
    from runtime.sync_documents d;

-- The last seq of each topic, by the name of its stream.
create view runtime.sync_topic_sequences as
  select s.stream_id, s.head_seq as last_seq, s.head_at as last_at from runtime.sync_streams s;

-- The payload of an event that tells of a document, in canonical JSON: the document, a pointer to it, or that it is deleted.
create function runtime.sync_document_event(
  doc_key text, doc_version bigint, document text, hash bytea, hydration_required boolean
) returns text language plpgsql immutable parallel safe as $$
begin
  if document is null then
    return '{"deleted":true,"doc_key":' || to_json(doc_key)::text || ',"doc_version":' || doc_version || '}';
  end if;
  if hydration_required then
    return '{"doc_key":' || to_json(doc_key)::text || ',"doc_version":' || doc_version
      || ',"hydration_required":true,"payload_bytes":' || octet_length(document)
      || ',"payload_hash":"sha256:' || encode(hash, 'hex') || '"}';
  end if;
  return '{"doc_key":' || to_json(doc_key)::text || ',"doc_version":' || doc_version
    || ',"payload":' || document || ',"payload_hash":"sha256:' || encode(hash, 'hex') || '"}';
end $$;

-- Whether it holds a pointer. No class allows less than 4 KiB inline, and the look at the class costs more than the rest.
create function runtime.sync_document_points(stream_id text, doc_key text, canonical text) returns boolean
language plpgsql stable as $$
begin
  -- What is around the document has at most 200 bytes, beside its key in JSON.
  if octet_length(canonical) + octet_length(to_json(doc_key)::text) + 200 <= 4096 then
    return false;
  end if;
  return octet_length(runtime.sync_document_event(doc_key, 9007199254740991, canonical, sha256(''), false))
    > (runtime.sync_payload_limit(stream_id)).inline_bytes;
end $$;

-- The key of such an event. It is the same whenever the same version is told of.
create function runtime.sync_document_event_key(doc_key text, doc_version bigint, projection_version int) returns text
language plpgsql immutable parallel safe as $$
begin
  return 'doc:' || doc_key || ':seq:' || doc_version || ':projection:' || projection_version;
end $$;

-- Locks a stream's row, as an append does, so that nothing is appended to it until the caller's transaction ends, and returns the
-- last seq. The settings of whoever calls it forbid scans.
create function runtime.sync_lock_stream(stream_id text) returns bigint language plpgsql as $$
#variable_conflict use_variable
declare
  head bigint;
begin
  loop
    select s.head_seq into head from runtime.sync_streams s where s.stream_id = stream_id collate "C" for no key update;
    if found then
      return head;
    end if;
    insert into runtime.sync_streams (stream_id, head_chain)
      values (stream_id, runtime.sync_genesis(stream_id))
      on conflict do nothing;
  end loop;
end $$;

-- Raises what is wrong with an entity's id.
create function runtime.sync_refuse_entity(entity_id text) returns void language plpgsql as $$
begin
  if octet_length(entity_id) between 1 and 255 is not true then
    raise exception 'entity_id has % bytes, expected 1 to 255', coalesce(octet_length(entity_id)::text, 'no')
      using errcode = 'SY016', hint = 'Name the entity by a short key, e.g. the id of the run.';
  end if;
  if entity_id collate "C" ~ '[\u0001-\u001f\u007f-\u009f]' then
    raise exception 'entity_id holds U+%, expected no control characters',
        upper(lpad(to_hex(ascii(substring(entity_id collate "C" from '[\u0001-\u001f\u007f-\u009f]'))), 4, '0'))
      using errcode = 'SY016', hint = 'Encode control characters before they become part of an id.';
  end if;
end $$;

-- Projects one document, in the caller's transaction: writes it into its read model, and appends what tells of it to its stream.
-- No document: it is deleted. Says what it did:
--
--   applied     the document is new or another one, or its source is further; `seq` is of the event
--   unchanged   seq and version of the projection are those that are held, and so is the document; nothing is written or locked
--   moved       as applied, and the document was in another stream before, where it is deleted
--
-- What is older than what is held is refused (SY012), and so is another document at the same seq and version (SY013): a
-- projection makes the same document of the same events, until it has another version. Projectors of one document wait for one
-- another at its stream, as appends do.
create function runtime.sync_project(
  projection text, entity_id text, source_seq bigint, document jsonb,
  stream_id text default null, projection_version int default 1,
  out outcome text, out seq bigint, out doc_key text, out payload_hash text, out hydration_required boolean
) language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- One plan a session, whatever the tables hold.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_variable
declare
  kind record;
  canonical text;
  hash bytea;
  held record;
  needed text[];
  locked text[] := '{}';
begin
  select p.doc_prefix, p.stream, p.source into kind
    from runtime.sync_projections p where p.projection = projection collate "C";
  if not found or kind.source is not null then
    raise exception 'projection "%" is %', projection,
        case when kind.source is null then 'not known' else format('of the table %s, whose trigger projects its rows', kind.source) end
      using errcode = 'SY014', hint = 'Name a row of runtime.sync_projections that has no source; the owner of the tables adds one.';
  end if;
  stream_id := coalesce(stream_id, kind.stream);
  if stream_id is null then
    raise exception 'projection "%" has no stream of its own, and the call names none', projection
      using errcode = 'SY014', hint = 'Name the stream that is to hear of the document.';
  end if;
  if (source_seq between 1 and 9007199254740991 and projection_version >= 1) is not true then
    raise exception 'found source_seq % and projection_version %, expected at least 1, and a seq below 2^53', source_seq,
        projection_version
      using errcode = 'SY017', hint = 'Pass the seq of the last event that is in the document.';
  end if;
  if (octet_length(entity_id) between 1 and 255 and entity_id collate "C" !~ '[\u0001-\u001f\u007f-\u009f]') is not true then
    perform runtime.sync_refuse_entity(entity_id);
  end if;
  canonical := runtime.sync_canonical_document(document);
  hash := sha256(convert_to(canonical, 'UTF8'));
  doc_key := kind.doc_prefix || ':' || entity_id;
  payload_hash := 'sha256:' || encode(hash, 'hex');

  loop
    select d.doc_version, d.projection_version, d.payload_hash, d.stream_id, d.seq, d.hydration_required, d.document is null as gone
      into held
      from runtime.sync_documents d
      where d.projection = projection collate "C" and d.entity_id = entity_id collate "C";
    if found then
      if source_seq < held.doc_version or projection_version < held.projection_version then
        raise exception 'document "%" is at seq % of its source and version % of the projection, found seq % and version %',
            doc_key, held.doc_version, held.projection_version, source_seq, projection_version
          using errcode = 'SY012', hint = 'Another projector is further. Read runtime.sync_projection_checkpoints and go on there; '
            'for a change of the code, raise projection_version.';
      end if;
      if source_seq = held.doc_version and projection_version = held.projection_version then
        if held.payload_hash is not distinct from hash and (hash is null or held.stream_id = stream_id) then
          outcome := 'unchanged';
          seq := held.seq;
          hydration_required := held.hydration_required;
          return;
        end if;
        raise exception 'document "%" at seq % of its source and version % of the projection is %, found %', doc_key, source_seq,
            projection_version, coalesce('sha256:' || encode(held.payload_hash, 'hex'), 'deleted') || ' in ' || held.stream_id,
            coalesce(payload_hash, 'deleted') || ' in ' || stream_id
          using errcode = 'SY013', hint = 'A projection makes the same document of the same events. If its code has changed, raise '
            'projection_version; if more has happened, pass the seq of that.';
      end if;
    end if;
    -- Whoever moves documents between two streams locks them in one order. What was read counts once its stream is locked, and it
    -- may have moved until then.
    needed := case when held.stream_id <> stream_id and not held.gone
      then array[least(held.stream_id, stream_id collate "C"), greatest(held.stream_id, stream_id collate "C")]
      else array[stream_id] end;
    exit when needed <@ locked;
    perform runtime.sync_lock_stream(needed[1]);
    if cardinality(needed) = 2 then
      perform runtime.sync_lock_stream(needed[2]);
    end if;
    locked := locked || needed;
  end loop;

  outcome := 'applied';
  if held.stream_id <> stream_id and not held.gone then
    outcome := 'moved';
    perform runtime.sync_append(held.stream_id, runtime.sync_document_event_key(doc_key, source_seq, projection_version),
      'document.delete', convert_to(runtime.sync_document_event(doc_key, source_seq, null, null, false), 'UTF8'));
  end if;
  hydration_required := canonical is not null and runtime.sync_document_points(stream_id, doc_key, canonical);
  seq := runtime.sync_append(stream_id, runtime.sync_document_event_key(doc_key, source_seq, projection_version),
    case when canonical is null then 'document.delete' else 'document.put' end,
    convert_to(runtime.sync_document_event(doc_key, source_seq, canonical, hash, hydration_required), 'UTF8'));
  insert into runtime.sync_documents as d
      (projection, entity_id, stream_id, doc_key, doc_version, projection_version, seq, document, payload_hash, payload_bytes,
        hydration_required, projected_at)
    values (projection, entity_id, stream_id, doc_key, source_seq, projection_version, seq, document, hash,
      octet_length(canonical), hydration_required, clock_timestamp())
    on conflict on constraint sync_documents_pkey do update
      set stream_id = excluded.stream_id, doc_version = excluded.doc_version, projection_version = excluded.projection_version,
          seq = excluded.seq, document = excluded.document, payload_hash = excluded.payload_hash,
          payload_bytes = excluded.payload_bytes, hydration_required = excluded.hydration_required,
          projected_at = excluded.projected_at
      where d.stream_id = held.stream_id and d.seq = held.seq;
  if not found then
    -- Where nothing was held, or a deleted document, another projector may write by another stream, whose lock nobody waits for.
    raise exception 'document "%" was projected into another stream meanwhile', doc_key
      using errcode = 'serialization_failure', hint = 'Try the whole transaction again.';
  end if;
end $$;

-- Where a role that reads may look. A part is read under its own name, too.
insert into runtime.sync_duty_rights values
  ('runtime', 'execute on function runtime.sync_project(text, text, bigint, jsonb, text, int)'),
  ('runtime', 'execute on function runtime.sync_canonical_json(jsonb)'),
  ('runtime', 'execute on function runtime.sync_canonical_part(jsonb, int)'),
  ('runtime', 'execute on function runtime.sync_canonical_number(numeric)'),
  ('runtime', 'execute on function runtime.sync_utf16_order(text)'),
  ('runtime', 'execute on function runtime.sync_refuse_document(text)'),
  ('runtime', 'execute on function runtime.sync_document_hash(jsonb)'),
  ('runtime', 'execute on function runtime.sync_checked_json(json, int)'),
  ('runtime', 'select on runtime.sync_projections, runtime.sync_projection_checkpoints');

insert into runtime.sync_duty_rights
  select d.duty, r.item
    from unnest(array['bridge', 'reading']) as d(duty), unnest(array[
      'select on runtime.sync_payload_limits, runtime.sync_projections, runtime.sync_documents',
      'select on runtime.sync_run_summaries, runtime.sync_codex_worker_summaries, runtime.sync_worker_lifecycle',
      'select on runtime.sync_fleet_workers, runtime.sync_notifications, runtime.sync_other_documents',
      'select on runtime.sync_projection_checkpoints, runtime.sync_topic_sequences',
      'execute on function runtime.sync_payload_limit(text)',
      'execute on function runtime.sync_canonical_json(jsonb)',
      'execute on function runtime.sync_canonical_part(jsonb, int)',
      'execute on function runtime.sync_canonical_number(numeric)',
      'execute on function runtime.sync_utf16_order(text)',
      'execute on function runtime.sync_refuse_document(text)',
      'execute on function runtime.sync_document_hash(jsonb)']) as r(item);

-- What is new belongs to nobody but the owner, and then to whoever has the duty.
do $$
declare
  of text;
  holder record;
begin
  for of in
    select distinct format('function %s from %s', p.oid::regprocedure,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee <> p.proowner and p.oid = any (array['runtime.sync_payload_limit(text)',
        'runtime.sync_refuse_payload()', 'runtime.sync_refuse_document(text)', 'runtime.sync_canonical_number(numeric)',
        'runtime.sync_utf16_order(text)', 'runtime.sync_canonical_part(jsonb, int)', 'runtime.sync_canonical_json(jsonb)',
        'runtime.sync_document_hash(jsonb)', 'runtime.sync_checked_json(json, int)',
        'runtime.sync_document_event(text, bigint, text, bytea, boolean)',
        'runtime.sync_document_points(text, text, text)', 'runtime.sync_document_event_key(text, bigint, int)',
        'runtime.sync_lock_stream(text)',
        'runtime.sync_canonical_document(jsonb)', 'runtime.sync_refuse_entity(text)',
        'runtime.sync_project(text, text, bigint, jsonb, text, int)']::regprocedure[])
    union all
    select distinct format('table %s from %s', c.oid::regclass,
        case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
      from pg_class c cross join lateral aclexplode(c.relacl) a
      where a.grantee <> c.relowner
        and c.oid = any (array['runtime.sync_payload_limits', 'runtime.sync_projections', 'runtime.sync_documents',
          'runtime.sync_run_summaries', 'runtime.sync_codex_worker_summaries', 'runtime.sync_worker_lifecycle',
          'runtime.sync_fleet_workers', 'runtime.sync_notifications', 'runtime.sync_other_documents',
          'runtime.sync_projection_checkpoints', 'runtime.sync_topic_sequences']::regclass[])
  loop
    execute format('revoke all on %s cascade', of);
  end loop;
  -- Who appends may project, and who reads the log may read what is projected. Nobody gets what else these duties have.
  for holder in
    select distinct quote_ident(pg_get_userbyid(a.grantee)) as role, r.item
      from pg_proc p cross join lateral aclexplode(p.proacl) a join runtime.sync_duty_rights r on r.duty = 'runtime'
      where a.grantee <> p.proowner and a.grantee <> 0 and p.oid = 'runtime.sync_append(text, text, text, bytea)'::regprocedure
        and r.item ~ 'sync_(project|canonical|utf16|refuse_document|document_hash|checked)'
    union
    select distinct quote_ident(pg_get_userbyid(a.grantee)), r.item
      from pg_class c cross join lateral aclexplode(c.relacl) a join runtime.sync_duty_rights r on r.duty = 'reading'
      where a.grantee <> c.relowner and a.grantee <> 0 and a.privilege_type = 'SELECT'
        and c.oid = 'runtime.sync_stream_events'::regclass
        and r.item ~ 'sync_(payload_limit|project|documents|run_summaries|fleet|topic|canonical|utf16|refuse_document|document_hash)'
  loop
    execute format('grant %s to %s', holder.item, holder.role);
  end loop;
end $$;

reset role;
