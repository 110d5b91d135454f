#!/usr/bin/env node
import { start } from './start.js';

await start('pcow', async () => (await import('./pcow-program.js')).pcowProgram());
