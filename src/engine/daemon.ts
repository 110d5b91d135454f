/** What a daemon needs of the system and Node does not have: word to the service manager, and another log file. */
import { translatedNow } from './errors.js';
import { addon } from './native.js';

/** Sends the service manager at a socket (sd_notify(3)) one message. */
export function notifyManager(socket: string, text: string): void {
  translatedNow(() => {
    addon().notifyManager(socket, text);
  });
}

/** Appends what this process prints to a file from now on, in place of where it went before. */
export function logTo(file: string): void {
  translatedNow(() => {
    addon().logTo(file);
  });
}
