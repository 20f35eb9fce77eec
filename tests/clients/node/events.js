'use strict';
// What a driver says: one JSON object per line on stdout. And when it ends: `stopped`.

let stop;
/** Resolves when the driver is told to stop. */
const stopped = new Promise(resolve => {
  stop = () => {
    state.stopped = true;
    resolve();
  };
});
const state = { stopped: false };

function emit(event, fields = {}) {
  process.stdout.write(`${JSON.stringify({ event, at: Date.now(), ...fields })}\n`);
}

function failure(error) {
  // `recallMessage` keeps the server's code only in the text.
  const inText = /\(code: (\d+)\)/.exec(error.message);
  const code = Number.isInteger(error.code) && error.code >= 20000 ? error.code : inText && Number(inText[1]);
  return { code: code || null, message: error.message, error: error.constructor.name };
}

function sleep(milliseconds) {
  return new Promise(resolve => setTimeout(resolve, milliseconds));
}

/** Whether the driver was stopped meanwhile. */
async function pause(milliseconds) {
  if (milliseconds > 0) {
    await Promise.race([ sleep(milliseconds), stopped ]);
  }
  return state.stopped;
}

/** Stops the driver when so many messages are done; never when it begins at 0. */
class Countdown {
  constructor(count) {
    this.left = count;
  }

  one() {
    this.left -= 1;
    if (this.left === 0) {
      stop();
    }
  }
}

module.exports = { Countdown, emit, failure, pause, sleep, state, stop: () => stop(), stopped };
