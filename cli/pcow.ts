#!/usr/bin/env node
import { pcowProgram } from './pcow-program.js';
import { run } from './program.js';

process.exitCode = await run(pcowProgram(), process.argv.slice(2));
