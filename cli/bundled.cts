/**
 * The programs as scripts/bundle.ts leaves them: in one file, because Node takes longer to find and read 300 of them than to run most
 * commands. This and the programs' own files are CommonJS: Node starts sooner with it.
 */
import module_ = require('node:module');
import type Programs = require('./programs.js');

// The trace of an error then names the sources. Only DEBUG shows one, and reading the map takes longer than most commands.
if (process.env.DEBUG !== undefined) process.setSourceMapsEnabled(true);

// Not there before it is made, so TypeScript can't look at it.
export = module_.createRequire(__filename)('./bundle/programs.cjs') as typeof Programs;
