#!/usr/bin/env node
/** The same by the path that it had, which scripts know; pcow.cjs starts sooner. */
import './pcow.cjs';
