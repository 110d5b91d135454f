#!/usr/bin/env node
import { start } from './start.js';

await start('pcow-img', async () => (await import('./pcow-img-program.js')).pcowImgProgram());
