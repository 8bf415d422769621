// Runs a program that is compiled to wasm without a system around it: `main` returns 0, or traps.
//
// usage: node wasm.js PROGRAM
import { readFileSync } from "node:fs";

const program = new WebAssembly.Module(readFileSync(process.argv[2] ?? ""));
const imports = WebAssembly.Module.imports(program);
if (imports.length > 0) {
  throw new Error(`it wants a system: ${JSON.stringify(imports)}`);
}
const { main } = new WebAssembly.Instance(program).exports;
if (typeof main !== "function") {
  throw new Error("it has no main");
}
const status = main(0, 0);
if (status !== 0) {
  throw new Error(`it ended with ${status}`);
}
