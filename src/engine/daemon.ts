/**
 * What a daemon needs from the system and Node does not offer: notifying the service manager, and
 * changing the log file.
 */
import { translatedNow } from './errors.js';
import { addon } from './native.js';

/** Sends one message to the service manager at a socket (sd_notify(3)). */
export function notifyManager(socket: string, text: string): void {
  translatedNow(() => {
    addon().notifyManager(socket, text);
  });
}

/** From now on, appends the output of this process to a file. */
export function logTo(file: string): void {
  translatedNow(() => {
    addon().logTo(file);
  });
}
