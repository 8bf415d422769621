//! Names of others in SQL.

/// A name of a schema, a table or a column as Postgres has it, as SQL takes it, whatever is in it.
pub fn sql_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_name_does_not_end_it() {
        assert_eq!(sql_name("Events"), r#""Events""#);
        assert_eq!(sql_name(r#"a"; drop table "b"#), r#""a""; drop table ""b""#);
    }
}
