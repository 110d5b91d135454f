#!/usr/bin/env node
import { pcowImgProgram } from './pcow-img-program.js';
import { run } from './program.js';

process.exitCode = await run(pcowImgProgram(), process.argv.slice(2));
