/** What the native build leaves, beside the sources (this is dist/src/engine/built.js), and what makes it. */
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

export const ADDON = path.join(ROOT, 'native/build/Release/pcow.node');
export const MONITOR = path.join(ROOT, 'native/build/Release/libpcow-monitor.so');

/** For messages. It also helps where npm was told to run no scripts as it installed this package. */
export const HOW_TO_BUILD = `build it with “bash ${path.join(ROOT, 'scripts/native-build')}”`;
