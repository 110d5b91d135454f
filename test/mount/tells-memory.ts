/**
 * Loaded into a mount's process before everything else (NODE_OPTIONS): on PCOW_TEST_SOCKET the
 * process tells how much memory it uses.
 */
import { createServer } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { rememberedFiles } from '../../src/engine/native-operations.js';

export interface Memory {
  /** Bytes of JavaScript objects. */
  heap: number;
  /** The files of which the native operations remember something. */
  remembered: number;
}

// The child processes of the mount are left alone.
delete process.env.NODE_OPTIONS;
setFlagsFromString('--expose-gc');
// Compiled code would be what the heap grows by.
setFlagsFromString('--no-opt');
setFlagsFromString('--no-sparkplug');
const collect = runInNewContext('gc') as () => void;

async function memory(): Promise<Memory> {
  // An image that is collected is released by another thread, and what it kept by the next
  // collection.
  for (let round = 0; round < 4; ++round) {
    collect();
    await turn();
  }
  return { heap: process.memoryUsage().heapUsed, remembered: rememberedFiles() };
}

const server = createServer((socket) => {
  socket.once('data', () => {
    void memory().then((it) => socket.end(JSON.stringify(it)));
  });
});
server.listen(process.env.PCOW_TEST_SOCKET).unref();
