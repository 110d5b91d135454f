#!/usr/bin/env node
import { mountHelperProgram } from './mount-helper-program.js';
import { run } from './program.js';

// mount(8) passes no environment on.
process.env.PATH ??= '/usr/sbin:/usr/bin:/sbin:/bin';
process.exitCode = await run(mountHelperProgram(), process.argv.slice(2));
