#!/usr/bin/env node
import bundled = require('./bundled.cjs');

// mount(8) does not pass its environment on.
process.env.PATH ??= '/usr/sbin:/usr/bin:/sbin:/bin';
void bundled.startProgram('mount.fuse.pcow');
