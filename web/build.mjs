// Builds the pages into the Python package, or into the folder that is given: the same bytes each time.
import { build } from "esbuild";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join, resolve } from "node:path";

const here = import.meta.dirname;
const out = resolve(process.argv[2] ?? join(here, "../python/minisgl/server/web"));
const PAGES = {
  chat: ["src/chat/main.tsx", "minisgl: chat", "Talk to the model that this server runs."],
  compare: ["src/compare/main.tsx", "minisgl: compare", "One prompt, two answers, and how likely each token was."],
  dashboard: ["src/board/main.tsx", "minisgl: board", "What this server is doing, live."],
};

await rm(out, { recursive: true, force: true });
const result = await build({
  absWorkingDir: here,
  entryPoints: [
    ...Object.entries(PAGES).map(([name, [source]]) => ({ in: source, out: name })),
    { in: "src/styles/main.css", out: "main" },
    { in: "src/icon.svg", out: "icon" },
  ],
  entryNames: "[name]-[hash]",
  chunkNames: "part-[hash]",
  outdir: join(out, "static"),
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["es2022"],
  minify: true,
  legalComments: "none",
  charset: "utf8",
  jsx: "automatic",
  jsxImportSource: "preact",
  loader: { ".svg": "copy" },
  metafile: true,
});

const outputs = Object.entries(result.metafile.outputs).map(([path, output]) => ({ name: basename(path), ...output }));
const named = (start) => outputs.find(({ name }) => name.startsWith(`${start}-`)).name;
/** A script, and those that it can't begin without. */
function scripts(name) {
  const { imports } = outputs.find((output) => output.name === name);
  const needed = imports.filter(({ kind }) => kind === "import-statement").map(({ path }) => basename(path));
  return [...new Set([name, ...needed.flatMap(scripts)])];
}
await mkdir(out, { recursive: true });
for (const [page, [, title, description]] of Object.entries(PAGES)) {
  const [entry, ...others] = scripts(named(page));
  const lines = [
    "<!doctype html>",
    '<html lang="en">',
    '<meta charset="utf-8">',
    `<title>${title}</title>`,
    '<meta name="viewport" content="width=device-width, initial-scale=1, interactive-widget=resizes-content">',
    `<meta name="description" content="${description}">`,
    '<meta name="color-scheme" content="light dark">',
    `<link rel="icon" href="static/${named("icon")}" type="image/svg+xml">`,
    `<link rel="stylesheet" href="static/${named("main")}">`,
    ...others.map((name) => `<link rel="modulepreload" href="static/${name}">`),
    `<script type="module" src="static/${entry}"></script>`,
    '<div id="app"></div>',
    "<noscript>This page needs JavaScript. The API works without it.</noscript>",
  ];
  await writeFile(join(out, `${page}.html`), lines.join("\n") + "\n");
}

// What the files have of others, under which terms.
const packages = Object.keys(result.metafile.inputs).map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
const notices = [];
for (const name of [...new Set(packages)].filter(Boolean).sort()) {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const terms = (await readdir(folder)).filter((file) => /^licen[cs]e(\.(md|txt))?$/i.test(file)).sort();
  if (!terms.length) throw new Error(`${name} has no file with its licence`);
  notices.push(`${name} ${version} (${license})\n\n${(await readFile(join(folder, terms[0]), "utf8")).trim()}\n`);
}
await writeFile(join(out, "licenses.txt"), notices.join(`\n${"-".repeat(80)}\n\n`));
