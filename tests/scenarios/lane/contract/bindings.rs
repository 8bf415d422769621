//! The generated bindings, read as source, so that they can be compared with the schema of the module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;
use spacetime_sync_tests::schema::{Field, Procedure, Surface, Table};
use syn::visit::Visit;

/// What the bindings in a folder offer.
pub(super) fn surface(folder: &Path) -> anyhow::Result<Surface> {
    let mut bindings = Bindings::default();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path)?;
            let file = syn::parse_file(&source).with_context(|| path.display().to_string())?;
            bindings.visit_file(&file);
        }
    }
    let arguments = |name: &str, structs: &BTreeMap<String, Vec<Field>>| {
        structs
            .get(name)
            .cloned()
            .with_context(|| format!("the bindings have no struct {name}"))
    };
    let mut surface = Surface::default();
    for (variant, name) in &bindings.reducers {
        surface
            .reducers
            .insert(name.clone(), arguments(&format!("{variant}Args"), &bindings.structs)?);
    }
    for (name, (structure, returns)) in &bindings.procedures {
        let arguments = arguments(structure, &bindings.structs)?;
        surface.procedures.insert(
            name.clone(),
            Procedure {
                arguments,
                returns: returns.clone(),
            },
        );
    }
    for field in bindings
        .structs
        .get("DbUpdate")
        .context("the bindings have no struct DbUpdate")?
    {
        let row = field
            .r#type
            .trim_start_matches("TableUpdate<")
            .trim_end_matches('>')
            .to_owned();
        let table = Table {
            primary_key: bindings.primary_keys.get(&field.name).cloned(),
            unique: bindings.unique.get(&row).cloned().unwrap_or_default(),
            row,
        };
        surface.tables.insert(field.name.clone(), table);
    }
    surface.types = bindings.structs;
    surface.keep_reachable_types();
    Ok(surface)
}

/// What is found in the generated sources.
#[derive(Default)]
struct Bindings {
    structs: BTreeMap<String, Vec<Field>>,
    /// Variant of the enum `Reducer` → name of the reducer.
    reducers: BTreeMap<String, String>,
    /// Name of the procedure → struct of its arguments, and what it returns.
    procedures: BTreeMap<String, (String, String)>,
    /// Table → column.
    primary_keys: BTreeMap<String, String>,
    /// Row type → columns.
    unique: BTreeMap<String, BTreeSet<String>>,
    row: Option<String>,
}

impl Visit<'_> for Bindings {
    fn visit_item_struct(&mut self, item: &syn::ItemStruct) {
        if let syn::Fields::Named(fields) = &item.fields {
            let field = |field: &syn::Field| Field {
                name: field.ident.as_ref().map(ToString::to_string).unwrap_or_default(),
                r#type: shown(&field.ty),
            };
            self.structs
                .insert(item.ident.to_string(), fields.named.iter().map(field).collect());
        }
    }

    fn visit_arm(&mut self, arm: &syn::Arm) {
        if let (syn::Pat::Struct(pattern), Some(name)) = (&arm.pat, string(&arm.body))
            && pattern
                .path
                .segments
                .first()
                .is_some_and(|segment| segment.ident == "Reducer")
            && let Some(variant) = pattern.path.segments.last()
        {
            self.reducers.insert(variant.ident.to_string(), name);
        }
        syn::visit::visit_arm(self, arm);
    }

    fn visit_expr_method_call(&mut self, call: &syn::ExprMethodCall) {
        let generics: Vec<String> = call
            .turbofish
            .iter()
            .flat_map(|found| found.args.iter().map(generic))
            .collect();
        let first = call.args.first();
        match call.method.to_string().as_str() {
            // The generated code calls this before it adds the constraints of the table.
            "get_or_make_table" => self.row = generics.first().cloned(),
            "add_unique_constraint" => {
                if let (Some(row), Some(column)) = (&self.row, first.and_then(string)) {
                    self.unique.entry(row.clone()).or_default().insert(column);
                }
            }
            "with_updates_by_pk" => {
                if let (syn::Expr::MethodCall(table), Some(column)) = (&*call.receiver, first.and_then(closure_field))
                    && let Some(table) = table.args.first().and_then(string)
                {
                    self.primary_keys.insert(table, column);
                }
            }
            "invoke_procedure_with_callback" => {
                if let (Some(name), Some(syn::Expr::Struct(arguments)), [_, returns]) =
                    (first.and_then(string), call.args.get(1), &generics[..])
                    && let Some(structure) = arguments.path.segments.last()
                {
                    self.procedures
                        .insert(name, (structure.ident.to_string(), returns.clone()));
                }
            }
            _ => {}
        }
        syn::visit::visit_expr_method_call(self, call);
    }
}

/// A type without the paths before its names.
fn shown(r#type: &syn::Type) -> String {
    match r#type {
        syn::Type::Path(path) => path.path.segments.last().map_or_else(String::new, |segment| {
            let name = segment.ident.to_string();
            match &segment.arguments {
                syn::PathArguments::AngleBracketed(found) => {
                    let inner: Vec<_> = found.args.iter().map(generic).collect();
                    format!("{name}<{}>", inner.join(", "))
                }
                syn::PathArguments::None | syn::PathArguments::Parenthesized(_) => name,
            }
        }),
        syn::Type::Tuple(tuple) if tuple.elems.is_empty() => "()".to_owned(),
        _ => "?".to_owned(),
    }
}

fn generic(argument: &syn::GenericArgument) -> String {
    match argument {
        syn::GenericArgument::Type(r#type) => shown(r#type),
        _ => String::new(),
    }
}

fn string(expression: &syn::Expr) -> Option<String> {
    match expression {
        syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) => Some(text.value()),
        _ => None,
    }
}

/// `name` of `|row| &row.name`
fn closure_field(expression: &syn::Expr) -> Option<String> {
    let syn::Expr::Closure(closure) = expression else {
        return None;
    };
    let syn::Expr::Reference(reference) = &*closure.body else {
        return None;
    };
    let syn::Expr::Field(field) = &*reference.expr else {
        return None;
    };
    match &field.member {
        syn::Member::Named(name) => Some(name.to_string()),
        syn::Member::Unnamed(_) => None,
    }
}
