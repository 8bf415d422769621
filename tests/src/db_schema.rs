//! `docs/DB_SCHEMA.md`: what the migrations make of a database, read from one to which they were applied.

use std::fmt::Write as _;

use anyhow::Context as _;
use sqlx::postgres::PgConnection;

const HEADER: &str = "# The schema of the authority\n
Made from a database to which `migrations/` were applied, by `target/release/db-schema`; a test compares it. What a name means, and
why, is in the migrations. All of it is in the schema `runtime`, and belongs to the owner; a duty is what a role may do
([security.md](security.md)).\n";

const RELATIONS: &str = "
    select c.oid, c.relname::text,
      case c.relkind when 'v' then 'view' else 'table' end
        || case when c.relkind = 'p' then ', partitioned' else '' end
        || case when c.relpersistence = 'u' then ', unlogged' else '' end
        || coalesce(', part of ' || (select i.inhparent::regclass::text from pg_inherits i where i.inhrelid = c.oid), ''),
      coalesce(obj_description(c.oid, 'pg_class'), '')
    from pg_class c
    where c.relnamespace = 'runtime'::regnamespace and c.relkind in ('r', 'p', 'v') order by c.relname collate \"C\"";

const COLUMNS: &str = "
    select a.attname::text, format_type(a.atttypid, a.atttypmod) || case when a.attnotnull then '' else ', may be null' end,
      coalesce(col_description(a.attrelid, a.attnum), '')
    from pg_attribute a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum";

const INDEXES: &str = "
    select regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING ', '')
      || case when i.indisprimary then ', primary key' when i.indisunique then ', unique' else '' end
    from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = $1 order by c.relname collate \"C\"";

const TRIGGERS: &str = "
    select g.tgfoid::regproc::text || case when g.tgdeferrable then ', deferred' else '' end
    from pg_trigger g where g.tgrelid = $1 and not g.tgisinternal order by g.tgname collate \"C\"";

const FUNCTIONS: &str = "
    select p.proname::text || '(' || pg_get_function_identity_arguments(p.oid) || ')', pg_get_function_result(p.oid),
      case when p.prosecdef then 'the owner' else 'its caller' end, coalesce(obj_description(p.oid, 'pg_proc'), '')
    from pg_proc p where p.pronamespace = 'runtime'::regnamespace order by p.proname, pg_get_function_identity_arguments(p.oid)";

const RIGHTS: &str = "select duty, item from runtime.sync_duty_rights order by duty, item";

/// The text of the document, for this database.
pub async fn describe(connection: &mut PgConnection) -> anyhow::Result<String> {
    let mut text = HEADER.to_owned();
    writeln!(text, "\n## Tables and views")?;
    let relations: Vec<(sqlx::postgres::types::Oid, String, String, String)> =
        sqlx::query_as(RELATIONS).fetch_all(&mut *connection).await?;
    for (oid, name, kind, comment) in relations {
        writeln!(text, "\n### {name}\n{}\n", sentence(&kind, &comment))?;
        let columns: Vec<(String, String, String)> =
            sqlx::query_as(COLUMNS).bind(oid).fetch_all(&mut *connection).await?;
        writeln!(text, "| column | type | what it is |\n| --- | --- | --- |")?;
        for (column, of_type, comment) in columns {
            writeln!(text, "| `{column}` | {of_type} | {} |", cell(&comment))?;
        }
        for (what, question) in [("Indexes", INDEXES), ("Triggers", TRIGGERS)] {
            let items: Vec<String> = sqlx::query_scalar(question)
                .bind(oid)
                .fetch_all(&mut *connection)
                .await
                .with_context(|| format!("{what} of {name}"))?;
            if !items.is_empty() {
                let items: Vec<String> = items.iter().map(|item| format!("`{item}`")).collect();
                writeln!(text, "\n{what}: {}", items.join("; "))?;
            }
        }
    }
    writeln!(
        text,
        "\n## Functions\n\n| function | returns | runs as | what it does |\n| --- | --- | --- | --- |"
    )?;
    let functions: Vec<(String, String, String, String)> =
        sqlx::query_as(FUNCTIONS).fetch_all(&mut *connection).await?;
    for (function, returns, runs_as, comment) in functions {
        writeln!(text, "| `{function}` | {returns} | {runs_as} | {} |", cell(&comment))?;
    }
    writeln!(text, "\n## Duties\n\n| duty | what it may do |\n| --- | --- |")?;
    let rights: Vec<(String, String)> = sqlx::query_as(RIGHTS).fetch_all(&mut *connection).await?;
    for (duty, item) in rights {
        writeln!(text, "| {duty} | {} |", item.replace("runtime.", ""))?;
    }
    Ok(text)
}

fn sentence(kind: &str, comment: &str) -> String {
    if comment.is_empty() {
        return format!("A {kind}.");
    }
    format!("A {kind}: {comment}.")
}

fn cell(comment: &str) -> String {
    comment.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_does_not_break_its_table() {
        assert_eq!(cell("one|other"), "one\\|other");
        assert_eq!(sentence("view", ""), "A view.");
        assert_eq!(sentence("table", "one row"), "A table: one row.");
    }
}
