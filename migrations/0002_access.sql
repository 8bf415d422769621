-- Who may read what: who owns a stream, what policy allows besides, and the sessions that tokens were given to.
--
-- The runtime writes owners and policy, the bridge reads them and writes sessions. What a name and a pattern may hold is
-- defined by the contract crate (proto/src/id.rs, proto/src/access/pattern.rs); the checks below agree with it.
--
-- The bridge's role needs, besides what migration 1 says: SELECT on sync_stream_owners and sync_access_policy, SELECT,
-- INSERT and UPDATE on sync_sessions.

-- Who owns a stream, whether or not anything was appended to it yet: the user, and every member of the organisation,
-- may read it. No reference to sync_streams, whose rows come into being with the first event.
create table runtime.sync_stream_owners (
  stream_id text collate "C" primary key,
  user_id text collate "C",
  org_id text collate "C",
  constraint sync_stream_owners_stream check (
    octet_length(stream_id) <= 255 and stream_id ~ '^[A-Za-z0-9._:/@+=~%-]+$'),
  constraint sync_stream_owners_user check (
    octet_length(user_id) <= 128 and user_id ~ '^[A-Za-z0-9._:@+=~%-]+$'),
  constraint sync_stream_owners_org check (
    octet_length(org_id) <= 128 and org_id ~ '^[A-Za-z0-9._:@+=~%-]+$'),
  constraint sync_stream_owners_some check (user_id is not null or org_id is not null)
);

-- A prefix that is asked for is a range of these.
create index sync_stream_owners_by_user on runtime.sync_stream_owners (user_id, stream_id) where user_id is not null;
create index sync_stream_owners_by_org on runtime.sync_stream_owners (org_id, stream_id) where org_id is not null;

-- What else may be read, and by whom: 'user:<id>', 'org:<id>' or 'everyone'. A pattern is a stream's name, or the
-- beginning of names that ends with . : or / and a star: it also covers streams that come to exist later.
create table runtime.sync_access_policy (
  principal text collate "C" not null,
  pattern text collate "C" not null,
  constraint sync_access_policy_pkey primary key (principal, pattern),
  constraint sync_access_policy_principal check (principal ~ '^(everyone|(user|org):[A-Za-z0-9._:@+=~%-]{1,128})$'),
  constraint sync_access_policy_pattern check (
    octet_length(rtrim(pattern, '*')) between 1 and 255
    and pattern ~ '^[A-Za-z0-9._:/@+=~%-]*([A-Za-z0-9._:/@+=~%-]|[.:/][*])$')
);

-- One row a session that was given a token, or was revoked before it had one. It is bound to the user and the device of
-- its first token.
create table runtime.sync_sessions (
  session_id text collate "C" primary key,
  user_id text collate "C",
  device_id text collate "C",
  bound_at timestamptz,
  revoked_at timestamptz,
  revoked_reason text,
  -- When SpacetimeDB took the revocation.
  delivered_at timestamptz,
  constraint sync_sessions_id check (
    octet_length(session_id) <= 128 and session_id ~ '^[A-Za-z0-9._:@+=~%-]+$'),
  constraint sync_sessions_user check (
    octet_length(user_id) <= 128 and user_id ~ '^[A-Za-z0-9._:@+=~%-]+$'),
  constraint sync_sessions_device check (
    octet_length(device_id) <= 128 and device_id ~ '^[A-Za-z0-9._:@+=~%-]+$'),
  constraint sync_sessions_bound check (
    (bound_at is null) = (user_id is null) and (bound_at is null) = (device_id is null)),
  constraint sync_sessions_some check (bound_at is not null or revoked_at is not null),
  constraint sync_sessions_reason check (octet_length(revoked_reason) <= 512),
  constraint sync_sessions_delivered check (delivered_at is null or revoked_at is not null)
);

create index sync_sessions_revoked on runtime.sync_sessions (revoked_at) where revoked_at is not null;
create index sync_sessions_undelivered on runtime.sync_sessions (revoked_at)
  where revoked_at is not null and delivered_at is null;
