//! What a module offers its clients: public tables, reducers, procedures and their types, as the schema of a published
//! module lists them.
//!
//! It leaves out what no client sees: private tables, indexes, sequences, row filters, lifecycle reducers and scheduled
//! reducers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The public surface of a module; see the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Surface {
    /// The public tables, by name.
    pub tables: BTreeMap<String, Table>,
    /// The reducers and their arguments, by name.
    pub reducers: BTreeMap<String, Vec<Field>>,
    /// The procedures, by name.
    pub procedures: BTreeMap<String, Procedure>,
    /// The named types, by name. The wire format depends on order and names of the fields.
    pub types: BTreeMap<String, Vec<Field>>,
}

/// A public table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Name of the row type.
    pub row: String,
    /// Name of the primary key column.
    pub primary_key: Option<String>,
    /// Names of the columns that have a unique constraint of their own.
    pub unique: BTreeSet<String>,
}

/// A procedure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Procedure {
    /// The arguments.
    pub arguments: Vec<Field>,
    /// The return type, as a Rust type.
    pub returns: String,
}

/// A column or an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its Rust type, without paths.
    pub r#type: String,
}

/// The reducers that a table schedules. Clients cannot call them.
pub fn scheduled(schema: &Value) -> anyhow::Result<BTreeSet<String>> {
    array(&schema["tables"])?
        .iter()
        .filter_map(|table| table["schedule"].get("some"))
        .map(|schedule| text(&schedule["reducer_name"]))
        .collect()
}

impl Surface {
    /// Reads the answer of `GET schema?version=9`.
    pub fn of_schema(schema: &Value) -> anyhow::Result<Self> {
        let mut names = BTreeMap::new();
        for named in array(&schema["types"])? {
            let name = named["name"]["name"].as_str().context("a type has no name")?;
            names.insert(
                named["ty"].as_u64().context("a type has no reference")?,
                name.to_owned(),
            );
        }
        let mut surface = Self::default();
        for (at, name) in &names {
            let elements = &schema["typespace"]["types"][*at as usize]["Product"]["elements"];
            let fields = fields(elements, &names).with_context(|| format!("type {name}"))?;
            surface.types.insert(name.clone(), fields);
        }
        for table in array(&schema["tables"])? {
            if table["table_access"].get("Public").is_some() {
                let name = text(&table["name"])?;
                let row = table["product_type_ref"]
                    .as_u64()
                    .and_then(|at| names.get(&at))
                    .context("a table's row has no name")?;
                let columns = &surface.types[row];
                surface.tables.insert(name, of_table(table, row, columns)?);
            }
        }
        let scheduled = scheduled(schema)?;
        for reducer in array(&schema["reducers"])? {
            if reducer["lifecycle"].get("some").is_none() && !scheduled.contains(&text(&reducer["name"])?) {
                surface
                    .reducers
                    .insert(text(&reducer["name"])?, fields(&reducer["params"]["elements"], &names)?);
            }
        }
        for export in array(&schema["misc_exports"])? {
            if let Some(procedure) = export.get("Procedure") {
                let arguments = fields(&procedure["params"]["elements"], &names)?;
                let returns = rust_type(&procedure["return_type"], &names)?;
                surface
                    .procedures
                    .insert(text(&procedure["name"])?, Procedure { arguments, returns });
            }
        }
        surface.keep_reachable_types();
        Ok(surface)
    }

    /// sha256 of the surface, in hex: the value that `SCHEMA_HASH` of the contract needs.
    pub fn hash(&self) -> anyhow::Result<String> {
        // Maps are sorted, so equal surfaces give equal texts.
        Ok(format!(
            "sha256:{}",
            hex::encode(Sha256::digest(serde_json::to_vec(self)?))
        ))
    }

    /// The differences to `other`, one per line. Empty if there are none.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (self.lines(), other.lines());
        let missing = ours.difference(&theirs).map(|line| format!("- {line}"));
        let extra = theirs.difference(&ours).map(|line| format!("+ {line}"));
        missing.chain(extra).collect()
    }

    fn lines(&self) -> BTreeSet<String> {
        let show = |fields: &[Field]| {
            let fields: Vec<_> = fields
                .iter()
                .map(|field| format!("{}: {}", field.name, field.r#type))
                .collect();
            fields.join(", ")
        };
        let tables = self
            .tables
            .iter()
            .map(|(name, table)| format!("table {name} {table:?}"));
        let reducers = self
            .reducers
            .iter()
            .map(|(name, arguments)| format!("reducer {name}({})", show(arguments)));
        let procedures = self.procedures.iter().map(|(name, procedure)| {
            format!(
                "procedure {name}({}) -> {}",
                show(&procedure.arguments),
                procedure.returns
            )
        });
        let types = self
            .types
            .iter()
            .map(|(name, fields)| format!("type {name} {{ {} }}", show(fields)));
        tables.chain(reducers).chain(procedures).chain(types).collect()
    }

    /// Types of private tables are generated and listed, too, though no client ever meets one.
    pub fn keep_reachable_types(&mut self) {
        let mut reached = BTreeSet::new();
        let mut open: Vec<String> = self.tables.values().map(|table| table.row.clone()).collect();
        let arguments = self
            .reducers
            .values()
            .chain(self.procedures.values().map(|procedure| &procedure.arguments));
        open.extend(arguments.flatten().flat_map(|field| words(&field.r#type)));
        open.extend(self.procedures.values().flat_map(|procedure| words(&procedure.returns)));
        while let Some(name) = open.pop() {
            if let Some(fields) = self.types.get(&name)
                && reached.insert(name)
            {
                open.extend(fields.iter().flat_map(|field| words(&field.r#type)));
            }
        }
        self.types.retain(|name, _| reached.contains(name));
    }
}

fn words(r#type: &str) -> Vec<String> {
    r#type
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn array(value: &Value) -> anyhow::Result<&Vec<Value>> {
    value
        .as_array()
        .with_context(|| format!("expected a list, found {value}"))
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value
        .as_str()
        .with_context(|| format!("expected a name, found {value}"))?
        .to_owned())
}

fn of_table(table: &Value, row: &str, columns: &[Field]) -> anyhow::Result<Table> {
    let named = |at: &Value| {
        let at = at.as_u64().and_then(|at| columns.get(at as usize));
        at.map(|column| column.name.clone())
            .context("a key names a column that does not exist")
    };
    let mut unique = BTreeSet::new();
    for constraint in array(&table["constraints"])? {
        if let [column] = array(&constraint["data"]["Unique"]["columns"])?.as_slice() {
            unique.insert(named(column)?);
        }
    }
    let primary_key = array(&table["primary_key"])?.first().map(named).transpose()?;
    Ok(Table {
        row: row.to_owned(),
        primary_key,
        unique,
    })
}

fn fields(elements: &Value, names: &BTreeMap<u64, String>) -> anyhow::Result<Vec<Field>> {
    let field = |element: &Value| {
        let name = text(&element["name"]["some"])?;
        Ok(Field {
            name,
            r#type: rust_type(&element["algebraic_type"], names)?,
        })
    };
    array(elements)?.iter().map(field).collect()
}

/// The Rust type that the generator produces for a type of the schema.
fn rust_type(r#type: &Value, names: &BTreeMap<u64, String>) -> anyhow::Result<String> {
    let unknown = || format!("unknown type in the schema: {type}");
    let (tag, body) = r#type
        .as_object()
        .and_then(|object| object.iter().next())
        .with_context(unknown)?;
    let parts = |list: &str| -> anyhow::Result<Vec<(String, &Value)>> {
        let part = |part: &'_ Value| text(&part["name"]["some"]);
        array(&body[list])?
            .iter()
            .map(|found| Ok((part(found)?, &found["algebraic_type"])))
            .collect()
    };
    Ok(match tag.as_str() {
        "Bool" => "bool".to_owned(),
        "String" => "String".to_owned(),
        "U8" | "U16" | "U32" | "U64" | "U128" | "U256" | "I8" | "I16" | "I32" | "I64" | "I128" | "I256" | "F32"
        | "F64" => tag.to_lowercase(),
        "Array" => format!("Vec<{}>", rust_type(body, names)?),
        "Ref" => body
            .as_u64()
            .and_then(|at| names.get(&at))
            .with_context(unknown)?
            .clone(),
        "Product" => match parts("elements")?
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()[..]
        {
            [] => "()".to_owned(),
            ["__identity__"] => "Identity".to_owned(),
            ["__connection_id__"] => "ConnectionId".to_owned(),
            ["__timestamp_micros_since_unix_epoch__"] => "Timestamp".to_owned(),
            ["__time_duration_micros__"] => "TimeDuration".to_owned(),
            ["__uuid__"] => "Uuid".to_owned(),
            _ => anyhow::bail!(unknown()),
        },
        "Sum" => match &parts("variants")?[..] {
            [(some, inner), (none, _)] if some == "some" && none == "none" => {
                format!("Option<{}>", rust_type(inner, names)?)
            }
            [(ok, good), (err, bad)] if ok == "ok" && err == "err" => {
                format!("Result<{}, {}>", rust_type(good, names)?, rust_type(bad, names)?)
            }
            [(interval, _), (time, _)] if interval == "Interval" && time == "Time" => "ScheduleAt".to_owned(),
            _ => anyhow::bail!(unknown()),
        },
        _ => anyhow::bail!(unknown()),
    })
}
