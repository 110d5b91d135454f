#!/usr/bin/env node
import { mountHelperProgram } from './mount-helper-program.js';
import { run } from './program.js';

process.exitCode = await run(mountHelperProgram(), process.argv.slice(2));
