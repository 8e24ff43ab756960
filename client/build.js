// Builds dist/: one file for each kind of module, and the types for both. Says how large it is.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

const GZIP_BYTES_MAX = 6 * 1024;
process.chdir(path.dirname(fileURLToPath(import.meta.url)));
rmSync('dist', { recursive: true, force: true });

const common = { entryPoints: ['src/index.ts'], bundle: true, minify: true, target: 'es2021', sourcemap: true, legalComments: 'none' };
await build({ ...common, format: 'esm', outfile: 'dist/roomwire.js' });
await build({ ...common, format: 'cjs', outfile: 'dist/roomwire.cjs' });
await build({ ...common, format: 'iife', globalName: 'roomwire', outfile: 'dist/roomwire.global.js' });

execFileSync('node_modules/.bin/tsc', ['--emitDeclarationOnly', '--stripInternal'], { stdio: 'inherit' });
// The same types for `require`, whose files must have an ending of their own.
for (const file of readdirSync('dist').filter((name) => name.endsWith('.d.ts'))) {
  const types = readFileSync(`dist/${file}`, 'utf8').replace(/(from '\.\/\w+)\.js'/g, "$1.cjs'");
  writeFileSync(`dist/${file.replace('.d.ts', '.d.cts')}`, types);
}

const bytes = gzipSync(readFileSync('dist/roomwire.js'), { level: 9 }).length;
console.log(`roomwire.js: ${bytes} bytes gzipped`);
if (bytes > GZIP_BYTES_MAX) throw new Error(`that is more than the ${GZIP_BYTES_MAX} that we promise`);
