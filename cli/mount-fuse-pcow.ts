#!/usr/bin/env node
import { start } from './start.js';

// mount(8) passes no environment on.
process.env.PATH ??= '/usr/sbin:/usr/bin:/sbin:/bin';
await start('mount.fuse.pcow', async () => (await import('./mount-helper-program.js')).mountHelperProgram());
